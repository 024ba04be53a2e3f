"""Features of a frozen encoder, computed once and kept in the user's cache folder under a digest of their inputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dexml.device import cache_folder


def rows(key: str, compute: Callable[[], Tensor]) -> Tensor:
    """Return the rows (N, D) kept under `key`, or what `compute` returns, which is then kept.

    A file whose checksum does not match its rows is computed anew.
    """
    path = cache_folder() / "features" / f"{key}.safetensors"
    kept = _read(path)
    if kept is not None:
        return kept
    made = compute().contiguous().clone()  # a copy: autograd refuses rows that were made in inference mode
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({"rows": made}, scratch, metadata={"sha256": _digest(made)})
    os.replace(scratch, path)
    return made


def _read(path: Path) -> Tensor | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            kept, expected = file.get_tensor("rows"), (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        return None
    assert isinstance(kept, Tensor)
    return kept if _digest(kept) == expected else None


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
