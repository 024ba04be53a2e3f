"""P, R, nDCG and propensity-scored P @k in percent: pure functions of ranked label numbers and the true labels.

Formulas and conventions: METHODS §4. `ranked` is int64 (N, K) by descending score, −1 where an answer is missing; `truth`
holds N rows, and empty ones count. Equal to pyxclib in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from dexml.types import Int64Array, Positives

Float64Array = npt.NDArray[np.float64]
Scalar = TypeVar("Scalar", bound=np.generic)
DEFAULT_PROPENSITY = (0.55, 1.5)  # Jain et al., KDD 2016, for sets without constants of their own


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
    order = np.argsort(keys, axis=1, kind="stable")
    ordered = np.take_along_axis(keys, order, axis=1)
    double = np.zeros(ranked.shape, dtype=bool)
    np.put_along_axis(double, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return found & ~double


def precision_at(ranked: Int64Array, truth: Positives, k: int) -> float:
    """Return P@k = 1/N Σ_i 1/k Σ_{r≤k} y_{i,π(r)}, in percent."""
    return _mean(_first(hits(ranked, truth), k).sum(axis=1) / k)


def recall_at(ranked: Int64Array, truth: Positives, k: int) -> float:
    """Return R@k = 1/N Σ_i 1/max(n_i, 1) Σ_{r≤k} y_{i,π(r)}, in percent."""
    return _mean(_first(hits(ranked, truth), k).sum(axis=1) / np.maximum(np.diff(truth.indptr), 1))


def ndcg_at(ranked: Int64Array, truth: Positives, k: int) -> float:
    """Return nDCG@k with gains 1/log2(r+1), normalised by the best possible row, in percent; empty rows give 0."""
    found = _first(hits(ranked, truth), k)
    discounts = _discounts(k)
    ideal = np.concatenate([[1.0], np.cumsum(discounts)])  # an empty row has no hits, so its divisor does not matter
    possible = np.minimum(k, np.diff(truth.indptr))
    return _mean((found * discounts[: found.shape[1]]).sum(axis=1) / ideal[possible])


def propensity_weights(train_counts: Int64Array, train_rows: int, a: float, b: float) -> Float64Array:
    """Return inverse propensities w_l = 1 + C (N_l + B)^(−A), C = (ln N_train − 1)(B+1)^A (L)."""
    if train_rows < 1:
        raise ValueError("propensities need at least one training row")
    c = (np.log(train_rows) - 1) * (b + 1) ** a
    return np.asarray(1 + c * (train_counts.astype(np.float64) + b) ** -a)


def propensity_precision_at(ranked: Int64Array, truth: Positives, weights: Float64Array, k: int) -> float:
    """Return PSP@k in percent: weighted hits over the best weighted hits possible, a ratio of means."""
    top = _first(ranked, k)
    got = (_first(hits(ranked, truth), k) * weights[np.maximum(top, 0)]).sum()
    best = 0.0
    true_weights = weights[truth.indices]
    for start, end in zip(truth.indptr[:-1], truth.indptr[1:], strict=True):
        row = true_weights[start:end]
        best += (np.partition(row, len(row) - k)[-k:] if len(row) > k else row).sum()
    return float(100 * got / best) if best else 0.0


def table(
    ranked: Int64Array,
    truth: Positives,
    weights: Float64Array,
    *,
    precision: Sequence[int] = (1, 3, 5),
    ndcg: Sequence[int] = (5,),
    recall: Sequence[int] = (100,),
    psp: Sequence[int] = (1, 5),
) -> Mapping[str, float]:
    """Return the figures that the field reports, by name ("P@1", "R@100", …), in percent."""
    return {
        **{f"P@{k}": precision_at(ranked, truth, k) for k in precision},
        **{f"nDCG@{k}": ndcg_at(ranked, truth, k) for k in ndcg},
        **{f"R@{k}": recall_at(ranked, truth, k) for k in recall},
        **{f"PSP@{k}": propensity_precision_at(ranked, truth, weights, k) for k in psp},
    }


def _first(rows: npt.NDArray[Scalar], k: int) -> npt.NDArray[Scalar]:
    if k < 1:
        raise ValueError(f"metrics: k must be at least 1, got {k}")
    return rows[:, :k]


def _discounts(k: int) -> Float64Array:
    return np.asarray(1 / np.log2(np.arange(2, k + 2)))


def _mean(values: npt.NDArray[np.generic]) -> float:
    return float(100 * values.mean()) if len(values) else 0.0
