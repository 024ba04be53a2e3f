"""Which answers are true, and rows of answers without those that are not wanted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dexml.positives import Int64Array, Positives


def hits(ranked: Int64Array, truth: Positives) -> npt.NDArray[np.bool_]:
    """Return whether each ranked label is true, bool (N, K); a label named twice in a row counts once."""
    if len(ranked) != len(truth):
        raise ValueError(f"metrics: {len(ranked)} ranked rows but {len(truth)} true ones")
    width = np.int64(truth.num_labels)
    if ranked.size and (ranked.max() >= width or ranked.min() < -1):
        raise ValueError(f"metrics: ranked label numbers must lie in [-1, {width})")
    rows = np.repeat(np.arange(len(truth), dtype=np.int64), np.diff(truth.indptr))
    true_keys = rows * width + truth.indices  # ascending, since rows are sorted
    keys = np.arange(len(ranked), dtype=np.int64)[:, None] * width + ranked
    places = np.searchsorted(true_keys, keys)
    found = np.zeros(ranked.shape, dtype=bool)
    inside = (places < len(true_keys)) & (ranked >= 0)
    found[inside] = true_keys[places[inside]] == keys[inside]
    once = np.zeros(ranked.shape, dtype=bool)
    where = np.flatnonzero(found)
    once.flat[where[np.unique(keys.flat[where], return_index=True)[1]]] = True
    return once


def without(ranked: Int64Array, excluded: Positives) -> Int64Array:
    """Return each row without its excluded labels, the rest moved up, padded with −1."""
    rows = np.repeat(np.arange(len(excluded), dtype=np.int64), np.diff(excluded.indptr))
    keys = np.arange(len(ranked), dtype=np.int64)[:, None] * np.int64(excluded.num_labels) + ranked
    gone = np.isin(keys, rows * np.int64(excluded.num_labels) + excluded.indices) | (ranked < 0)
    order = np.argsort(gone, axis=1, kind="stable")
    return np.take_along_axis(np.where(gone, -1, ranked), order, axis=1)
