"""What the contracts of losses and kernels share: a look at the memory that a call takes, with slabs that are small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.untyped_storage().nbytes())
        return made


@pytest.fixture
def largest_tensor(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], Any]], int]:
    """Return a function that makes a call on a kernel backend, by name, with the smallest slabs, and returns the bytes of the
    largest tensor that any torch operation made or looked at, forward or backward.
    """

    def measure(backend: str, call: Callable[[], Any]) -> int:
        from dexml.kernels import numba_slabs

        monkeypatch.setattr(numba_slabs, "SLAB_BYTES", 1)
        if backend == "triton":
            from dexml.kernels import triton_rows, triton_sums

            monkeypatch.setattr(triton_rows, "SLAB_BYTES", 1)
            monkeypatch.setattr(triton_sums, "KEEP_BYTES", 0)
        with _Largest() as largest:
            call()
        return largest.size

    return measure
