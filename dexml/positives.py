"""The labels of rows, without torch: what the metrics need is imported in no time.

N rows, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Positives:
    """The labels of N rows in compressed sparse rows: sorted and unique within a row.

    `indptr` (N+1) and `indices` (nnz) are int64, `weights` (nnz) float32 or None when every positive counts 1.
    """

    indptr: Int64Array
    indices: Int64Array
    num_labels: int
    weights: Float32Array | None = None

    def __post_init__(self) -> None:
        indptr, indices = self.indptr, self.indices
        if indptr.ndim != 1 or indptr.dtype != np.int64 or indices.dtype != np.int64 or len(indptr) == 0:
            raise TypeError(f"positives need one-dimensional int64 arrays, got {indptr.dtype} and {indices.dtype}")
        if indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 0).any():
            raise ValueError("positives: indptr must rise from 0 to the number of indices")
        if len(indices) and (indices.min() < 0 or indices.max() >= self.num_labels):
            raise ValueError(f"positives: label numbers must lie in [0, {self.num_labels}), got {indices.max()}")
        falls = indices[1:] <= indices[:-1]  # a byte each, where differences would take as much again as the numbers
        starts = indptr[1:-1]
        falls[starts[(starts > 0) & (starts < len(indices))] - 1] = False
        if falls.any():
            raise ValueError("positives: label numbers must be sorted and unique within a row")
        if self.weights is not None and self.weights.shape != indices.shape:
            raise ValueError("positives: one weight per label number is needed")

    def __len__(self) -> int:
        """Return the number of rows, empty ones too."""
        return len(self.indptr) - 1

    @staticmethod
    def from_rows(rows: Sequence[Sequence[int]], num_labels: int) -> Positives:
        """Return the positives of `rows`, each an unordered list of label numbers; doubles are merged."""
        unique = [np.unique(np.asarray(row, dtype=np.int64)) for row in rows]
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in unique], out=indptr[1:])
        indices = np.concatenate(unique) if unique else np.zeros(0, dtype=np.int64)
        return Positives(indptr, indices, num_labels)

    @staticmethod
    def from_matrix(matrix: Any) -> Positives:
        """Return the positives of a scipy sparse matrix (N, L): stored zeros drop out, doubles merge, rows are sorted."""
        csr = sp.csr_array(matrix, copy=True)
        csr.sum_duplicates()
        csr.eliminate_zeros()
        csr.sort_indices()
        return Positives(csr.indptr.astype(np.int64), csr.indices.astype(np.int64), int(csr.shape[1]))

    def matrix(self) -> sp.csr_array:
        """Return a scipy CSR array (N, L) of float32 ones, or of the weights."""
        data = np.ones(len(self.indices), dtype=np.float32) if self.weights is None else self.weights
        return sp.csr_array((data, self.indices, self.indptr), shape=(len(self), self.num_labels))

    def row(self, number: int) -> Int64Array:
        """Return the label numbers of one row."""
        return self.indices[self.indptr[number] : self.indptr[number + 1]]

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> Positives:
        """Return the positives of the chosen rows, in the order asked for."""
        starts, ends = self.indptr[rows], self.indptr[np.asarray(rows) + 1]
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(ends - starts, out=indptr[1:])
        places = np.repeat(starts - indptr[:-1], ends - starts) + np.arange(indptr[-1])
        weights = None if self.weights is None else self.weights[places]
        return Positives(indptr, self.indices[places], self.num_labels, weights)

    def counts(self) -> Int64Array:
        """Return how many rows each label belongs to (L)."""
        return np.bincount(self.indices, minlength=self.num_labels).astype(np.int64)
