"""One figure at a time, in percent. Formulas and conventions: METHODS §4; equal to pyxclib in float64.

`given` holds label numbers by descending score, int64 (N, K), −1 where an answer is missing, or is a scipy sparse matrix of
scores (N, L), in which stored zeros are predictions and ties go by label number. `truth` are Positives or a scipy sparse
matrix (N, L); its empty rows count. `excluded` pairs leave the answers first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dexml.metrics.rows import of_rows
from dexml.metrics.tally import Tally
from dexml.metrics.top import ranked_of, truth_of
from dexml.positives import Int64Array, Positives

Float64Array = npt.NDArray[np.float64]


def precision_at(given: Int64Array | Any, truth: Positives | Any, k: int, excluded: Positives | None = None) -> float:
    """Return P@k = 1/N Σ_i 1/k Σ_{r≤k} y_{i,π(r)}."""
    return _figure("P", given, truth, k, excluded)


def recall_at(given: Int64Array | Any, truth: Positives | Any, k: int, excluded: Positives | None = None) -> float:
    """Return R@k = 1/N Σ_i 1/max(n_i, 1) Σ_{r≤k} y_{i,π(r)}."""
    return _figure("R", given, truth, k, excluded)


def ndcg_at(given: Int64Array | Any, truth: Positives | Any, k: int, excluded: Positives | None = None) -> float:
    """Return nDCG@k with gains 1/log2(r+1), normalised by the best possible row; empty rows give 0."""
    return _figure("nDCG", given, truth, k, excluded)


def hit_rate_at(given: Int64Array | Any, truth: Positives | Any, k: int, excluded: Positives | None = None) -> float:
    """Return hits@k, the share of rows with a true label among the first k."""
    return _figure("hits", given, truth, k, excluded)


def reciprocal_rank_at(given: Int64Array | Any, truth: Positives | Any, k: int, excluded: Positives | None = None) -> float:
    """Return MRR@k, the mean of 1/rank of the first true label, 0 where it is not among the first k."""
    return _figure("MRR", given, truth, k, excluded)


def average_precision_at(given: Int64Array | Any, truth: Positives | Any, k: int, excluded: Positives | None = None) -> float:
    """Return MAP@k = 1/N Σ_i 1/min(k, n_i) Σ_{r≤k} y_{i,π(r)} P_i@r: 100 for the best possible rows at every k."""
    return _figure("MAP", given, truth, k, excluded)


def propensity_precision_at(
    given: Int64Array | Any, truth: Positives | Any, weights: Float64Array, k: int, excluded: Positives | None = None
) -> float:
    """Return PSP@k: weighted hits over the best weighted hits possible, a ratio of means."""
    return _figure("PSP", given, truth, k, excluded, weights)


def propensity_ndcg_at(
    given: Int64Array | Any, truth: Positives | Any, weights: Float64Array, k: int, excluded: Positives | None = None
) -> float:
    """Return PSnDCG@k: as PSP@k, each hit discounted by its rank and each row by its ideal sum of discounts."""
    return _figure("PSnDCG", given, truth, k, excluded, weights)


def propensity_recall_at(
    given: Int64Array | Any, truth: Positives | Any, weights: Float64Array, k: int, excluded: Positives | None = None
) -> float:
    """Return PSR@k: as PSP@k, each row divided by max(n_i, 1) instead of k."""
    return _figure("PSR", given, truth, k, excluded, weights)


def coverage_at(given: Int64Array | Any, truth: Positives | Any, k: int, excluded: Positives | None = None) -> float:
    """Return coverage@k, the share of the labels true of some row that were found at least once among the first k."""
    return _of_labels("coverage", given, truth, k, excluded)


def macro_precision_at(given: Int64Array | Any, truth: Positives | Any, k: int, excluded: Positives | None = None) -> float:
    """Return the mean, over the labels true of some row, of the share of their answers that are right (0 without answers)."""
    return _of_labels("macroP", given, truth, k, excluded)


def macro_recall_at(given: Int64Array | Any, truth: Positives | Any, k: int, excluded: Positives | None = None) -> float:
    """Return the mean, over the labels true of some row, of the share of their rows that found them."""
    return _of_labels("macroR", given, truth, k, excluded)


def macro_f1_at(given: Int64Array | Any, truth: Positives | Any, k: int, excluded: Positives | None = None) -> float:
    """Return the mean, over the labels true of some row, of 2·right / (answers + true)."""
    return _of_labels("macroF1", given, truth, k, excluded)


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
    asked = {"P": precision, "nDCG": ndcg, "R": recall, "PSP": psp}
    cutoffs = sorted({k for ks in asked.values() for k in ks})
    figures = of_rows(ranked, truth, weights, cutoffs).figures()
    return {name: figures[name] for kind, ks in asked.items() for k in ks if (name := f"{kind}@{k}")}


def _figure(
    kind: str, given: Any, truth: Any, k: int, excluded: Positives | None, weights: Float64Array | None = None
) -> float:
    _check(k)
    return of_rows(ranked_of(given, k, excluded), truth_of(truth), weights, (k,)).figures()[f"{kind}@{k}"]


def _of_labels(kind: str, given: Any, truth: Any, k: int, excluded: Positives | None) -> float:
    _check(k)
    positives = truth_of(truth)
    tally = Tally(positives.num_labels, None, (k,))
    tally.add(ranked_of(given, k, excluded), positives)
    return tally.figures()[f"{kind}@{k}"]


def _check(k: int) -> None:
    if k < 1:
        raise ValueError(f"metrics: k must be at least 1, got {k}")
