"""Compressed rows of label numbers, grown row by row in flat arrays: 8 bytes a label, not a Python list's 36."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from dexml.types import Positives


class Rows:
    """Positives in the making; label numbers are checked by whoever reads them."""

    def __init__(self, num_labels: int) -> None:
        self._num_labels = num_labels
        self._indptr = array("q", [0])
        self._indices = array("q")

    def __len__(self) -> int:
        """Return how many rows there are so far."""
        return len(self._indptr) - 1

    def append(self, numbers: Sequence[int]) -> None:
        """Add a row; doubles are merged."""
        self._indices.extend(sorted(set(numbers)))
        self._indptr.append(len(self._indices))

    def build(self) -> Positives:
        """Return the positives; they share the arrays' memory, so that nothing can be appended any more."""
        indices = np.frombuffer(self._indices, dtype=np.int64) if self._indices else np.zeros(0, dtype=np.int64)
        return Positives(np.frombuffer(self._indptr, dtype=np.int64), indices, self._num_labels)


__all__ = ["Rows"]
