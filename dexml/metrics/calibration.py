"""Whether probabilities mean what they say: reliability curve, ECE@k, Brier score and log loss of the k answers of each row.

`probabilities` float (N, K) are of answers by descending score, NaN where one is missing; `hits` bool (N, K) say which of
them are right (`dexml.metrics.hits`). Every answer among the first k of a row counts once; p is its probability, y its hit.

A curve's bins hold equally many answers unless `equal_width` is set. A softmax over thousands of labels leaves most
probabilities near 0: bins of equal width would then hold nearly everything in one, whose mean hides what is wrong inside it,
and a handful of answers in each of the others, whose accuracy is noise (Nixon et al., Measuring Calibration in Deep Learning,
CVPR Workshops 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dexml.positives import Int64Array

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
BINS = 15  # Guo et al., On Calibration of Modern Neural Networks, ICML 2017
ROUNDING = 1e-5  # how far above 1 a softmax may be that was taken in float32
FLOOR = 1e-7  # a probability of 0 or 1 that is wrong costs log 10⁷, not infinity; answers carry seven digits


@dataclass(frozen=True, eq=False)
class Reliability:
    """The bins of a reliability curve that hold an answer, by ascending probability.

    Of each bin (b): `confidence` float64, the mean probability; `accuracy` float64, the share of answers that are right;
    `count` int64, its answers.
    """

    confidence: Float64Array
    accuracy: Float64Array
    count: Int64Array

    @property
    def ece(self) -> float:
        """The expected calibration error Σ_b n_b/n · |accuracy_b − confidence_b|, in 0..1; NaN without an answer."""
        if len(self.count) == 0:
            return math.nan
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.count))


def reliability(k: int, probabilities: Any, hits: Any, bins: int = BINS, *, equal_width: bool = False) -> Reliability:
    """Return the reliability curve over the first k answers of each row.

    Equal probabilities share a bin, so that no curve depends on the order of the rows; of calibrated ones, which take few
    values, there may be fewer than `bins`. Raises ValueError for shapes that differ, k or bins < 1, and a probability
    outside 0..1.
    """
    if bins < 1:
        raise ValueError(f"metrics: bins must be at least 1, got {bins}")
    p, y = _answers(k, probabilities, hits)
    values, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    if equal_width:
        places = np.minimum((values * bins).astype(np.int64), bins - 1)
    else:  # by the middle rank of each value: in equal shares where all differ
        places = np.floor((np.cumsum(counts) - counts / 2) * bins / max(len(p), 1)).astype(np.int64)
    of_answer = places[inverse]
    count = np.bincount(of_answer, minlength=bins).astype(np.int64)
    held = count > 0
    confidence = np.bincount(of_answer, weights=p, minlength=bins)[held] / count[held]
    accuracy = np.bincount(of_answer, weights=y, minlength=bins)[held] / count[held]
    return Reliability(confidence, accuracy, count[held])


def ece_at(k: int, probabilities: Any, hits: Any, bins: int = BINS) -> float:
    """Return ECE@k = Σ_b n_b/n · |accuracy_b − confidence_b| over the first k answers of each row, in 0..1: Guo et al.'s.

    Its bins have equal width; read `adaptive_ece_at` beside it. A calibration error of 0 does not make a good answer: one
    probability for everything, the overall precision, has it. Brier score and log loss tell.
    """
    return reliability(k, probabilities, hits, bins, equal_width=True).ece


def adaptive_ece_at(k: int, probabilities: Any, hits: Any, bins: int = BINS) -> float:
    """Return ECE@k with bins of equally many answers, in 0..1: Nixon et al.'s adaptive error.

    It is the stricter one where most probabilities are near 0, and with few answers the noisier one.
    """
    return reliability(k, probabilities, hits, bins).ece


def brier_at(k: int, probabilities: Any, hits: Any) -> float:
    """Return the Brier score 1/n Σ (p − y)² over the first k answers of each row, in 0..1, less is better."""
    p, y = _answers(k, probabilities, hits)
    return float(np.mean((p - y) ** 2)) if len(p) else math.nan


def log_loss_at(k: int, probabilities: Any, hits: Any) -> float:
    """Return −1/n Σ [y ln p + (1 − y) ln(1 − p)] over the first k answers of each row; p is kept 10⁻⁷ away from 0 and 1."""
    p, y = _answers(k, probabilities, hits)
    p = np.clip(p, FLOOR, 1 - FLOOR)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))) if len(p) else math.nan


def _answers(k: int, probabilities: Any, hits: Any) -> tuple[Float64Array, Float64Array]:
    """Return the probabilities and hits of the answers there are among the first k, float64 (n) each."""
    given, right = np.asarray(probabilities, dtype=np.float64), np.asarray(hits, dtype=bool)
    if k < 1:
        raise ValueError(f"metrics: k must be at least 1, got {k}")
    if given.ndim != 2 or given.shape != right.shape:
        raise ValueError(f"metrics: probabilities {given.shape} and hits {right.shape} must be two (N, K) of the same shape")
    p, y = given[:, :k].ravel(), right[:, :k].ravel()
    there = ~np.isnan(p)
    p, y = p[there], y[there]
    if len(p) and (p.min() < 0 or p.max() > 1 + ROUNDING):
        raise ValueError(f"metrics: probabilities must lie in 0..1, got {p.min():g} to {p.max():g}")
    return np.minimum(p, 1), y.astype(np.float64)


__all__ = ["BINS", "Reliability", "brier_at", "ece_at", "log_loss_at", "reliability"]
