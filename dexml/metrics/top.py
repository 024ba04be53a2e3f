"""The k best predictions of every row of a sparse matrix of scores, ties by ascending label number."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from dexml.metrics.found import without
from dexml.positives import Int64Array, Positives


def predictions(matrix: Any) -> sp.csr_array:
    """Return a scipy sparse matrix of scores (N, L) as `top` reads it: rows sorted by label number, doubles summed.

    Stored zeros and negative scores stay: they are predictions. A matrix that is in order already is not copied. Raises
    ValueError for a score that is NaN.
    """
    csr = sp.csr_array(matrix)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    if csr.dtype not in (np.float32, np.float64):
        csr = csr.astype(np.float64)
    step = 1 << 20  # in pieces: no mask as long as the scores
    if any(np.isnan(csr.data[start : start + step]).any() for start in range(0, csr.nnz, step)):
        raise ValueError("metrics: a score is NaN")
    return csr


def top(scores: Any, k: int, excluded: Positives | None = None, rows: slice | None = None) -> Int64Array:
    """Return the label numbers of the k best scores of each row, int64 (N, k), −1 where a row has fewer.

    `scores` is what `predictions` returned, or any other scipy sparse matrix; `excluded` (N, L) pairs leave it first. `rows`
    asks for a contiguous part, without copying it.
    """
    csr = predictions(scores) if rows is None else scores
    first, last, _ = (rows or slice(None)).indices(csr.shape[0])
    best = np.full((last - first, k), -1, dtype=np.int64)
    gone = excluded or Positives(np.zeros(csr.shape[0] + 1, dtype=np.int64), np.zeros(0, dtype=np.int64), csr.shape[1])
    if len(gone) != csr.shape[0] or gone.num_labels != csr.shape[1]:
        raise ValueError(f"metrics: excluded pairs of shape {(len(gone), gone.num_labels)}, but scores of {csr.shape}")
    _kernel()(csr.indptr, csr.indices, csr.data, gone.indptr, gone.indices, first, best)
    return best


def ranked_of(given: Int64Array | Any, k: int, excluded: Positives | None = None) -> Int64Array:
    """Return the k best of each row of `given`: label numbers in order (N, K), or a sparse matrix of scores (N, L)."""
    if sp.issparse(given):
        return top(given, k, excluded)
    return given[:, :k] if excluded is None else without(given, excluded)[:, :k]


def truth_of(given: Positives | Any) -> Positives:
    """Return `given`, or the positives of a scipy sparse matrix (N, L), whose stored zeros are none."""
    return given if isinstance(given, Positives) else Positives.from_matrix(given)


def _kernel() -> Any:
    from dexml.metrics.numba_top import top_rows  # numba takes half a second, which ranked rows do not need

    return top_rows
