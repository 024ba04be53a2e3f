"""Top-k of ragged rows; it holds no lock of Python's, so that threads run it side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def top_rows(indptr: Any, indices: Any, scores: Any, gone_ends: Any, gone: Any, first: int, best: Any) -> None:
    """Write the labels of the best scores of rows `first`, `first` + 1, … into `best` (B, k), without those in `gone`.

    Labels ascend within a row, so that a stable sort by descending score leaves ties in ascending order. `gone` ascends too.
    """
    count, k = best.shape
    for row in range(count):
        start, end = indptr[first + row], indptr[first + row + 1]
        low, high = gone_ends[first + row], gone_ends[first + row + 1]
        place = 0
        for position in np.argsort(-scores[start:end], kind="mergesort"):
            if place == k:
                break
            label = indices[start + position]
            if high > low:
                nearest = low + np.searchsorted(gone[low:high], label)
                if nearest < high and gone[nearest] == label:
                    continue
            best[row, place] = label
            place += 1
