"""The exact index: our own scan over all label rows, which gives the top-k and the true softmax in one pass."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dexml.kernels import Kernels, Prepared, choose
from dexml.types import TopK
from index.base import LabelIndex

AT_ONCE = 256  # queries that one pass over the rows answers
PASSES = 64  # over float32 rows, which take about as long as making the copies does


class ExactIndex(LabelIndex):
    """`kernels.scan` over the label rows; `scan_copy` names the scanning copy (see `Kernels.prepare`).

    With "auto" it is made after a number of searches, or by `warm`: who asks once does not wait for what takes longer to make
    than to do without.
    """

    def __init__(self, *, scan_copy: Literal["auto", "none", "int16", "int8"] = "auto", backend: str | None = None) -> None:
        self.scan_copy = scan_copy
        self.kernels: Kernels = choose(backend=backend)
        self._prepared: Prepared | None = None
        self._passes: int | None = 0  # None: nothing is put off

    def build(self, labels: Tensor) -> None:
        """Take the label rows (L, D); make the scanning copy where one was named."""
        put_off = self.scan_copy == "auto"
        self._prepared = self.kernels.prepare(labels, copy="none" if put_off else self.scan_copy)
        self._passes = 0 if put_off else None

    def warm(self) -> None:
        """Make the scanning copy, where the CPU and the number of labels are worth one."""
        if self._prepared is not None and self._passes is not None:
            self._prepared = self.kernels.prepare(self._prepared.labels, copy="auto")
            self._passes = None

    def search(self, queries: Tensor, k: int, temperature: float) -> TopK:
        """Return the exact top-k with log_z over all labels."""
        assert self._prepared is not None, "build comes before search"
        if self._passes is not None:
            self._passes += -(-len(queries) // AT_ONCE)
            if self._passes > PASSES:
                self.warm()
        return self.kernels.scan(queries, self._prepared, k, temperature)

    @property
    def prepared(self) -> Prepared | None:
        """The label rows with their scanning copies."""
        return self._prepared

    @property
    def exact(self) -> bool:
        """Always: every row is scored."""
        return True

    def describe(self) -> dict[str, object]:
        """Return the backend and the scanning copy, "auto" while it is not yet decided."""
        copy = self.scan_copy if self._prepared is None or self._passes is not None else self._prepared.copy
        return {"name": "exact", "device": "cpu", "backend": type(self.kernels).__name__, "copy": copy}
