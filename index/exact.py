"""The exact index: our own scan over all label rows, which gives the top-k and the true softmax in one pass."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dexml.kernels import Kernels, Prepared, choose
from dexml.types import TopK
from index.base import LabelIndex


class ExactIndex(LabelIndex):
    """`kernels.scan` over the label rows; `scan_copy` names the scanning copy (see `Kernels.prepare`)."""

    def __init__(self, *, scan_copy: Literal["auto", "none", "int16", "int8"] = "auto", backend: str | None = None) -> None:
        self.scan_copy = scan_copy
        self.kernels: Kernels = choose(backend=backend)
        self._prepared: Prepared | None = None

    def build(self, labels: Tensor) -> None:
        """Prepare the label rows (L, D) for scanning."""
        self._prepared = self.kernels.prepare(labels, copy=self.scan_copy)

    def search(self, queries: Tensor, k: int, temperature: float) -> TopK:
        """Return the exact top-k with log_z over all labels."""
        assert self.prepared is not None, "build comes before search"
        return self.kernels.scan(queries, self.prepared, k, temperature)

    @property
    def prepared(self) -> Prepared | None:
        """The label rows with their scanning copies."""
        return self._prepared

    @property
    def exact(self) -> bool:
        """Always: every row is scored."""
        return True

    def describe(self) -> dict[str, object]:
        """Return the backend and the scanning copy."""
        copy = self.prepared.copy if self.prepared is not None else self.scan_copy
        return {"name": "exact", "device": "cpu", "backend": type(self.kernels).__name__, "copy": copy}
