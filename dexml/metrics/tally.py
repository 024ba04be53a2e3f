"""All figures of a split that need not fit into memory: blocks of rows are counted in any order, by several threads.

Counts are integers, and what a row earns is counted in units of 2⁻³⁶, so that the sum of the blocks is the whole to the
last bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from dexml.metrics.found import without
from dexml.metrics.rows import CUTOFFS, PLAIN, PROPENSITY, of_rows
from dexml.metrics.top import predictions, top, truth_of
from dexml.positives import Int64Array, Positives

Float64Array = npt.NDArray[np.float64]
BLOCK = 4096  # rows at a time and thread
UNIT = 2.0**36
HEAVIEST = 2.0**14  # a block of rows at this weight still fits into 63 bits of units


class Tally:
    """Figures of `rows` rows so far, over `num_labels` labels (L), at ascending `cutoffs`; `weights` (L) give propensities.

    `hits`, `answers` int64 (cutoffs, L): how often a label was a right answer, and an answer at all, among the first k;
    `true` int64 (L): how often it is true.
    """

    def __init__(self, num_labels: int, weights: Float64Array | None = None, cutoffs: Sequence[int] = CUTOFFS) -> None:
        if weights is not None and (len(weights) != num_labels or not (abs(weights) <= HEAVIEST).all()):
            raise ValueError(f"metrics: {num_labels} finite weights up to {HEAVIEST:g} are needed, one a label")
        self.num_labels, self.weights, self.cutoffs = num_labels, weights, tuple(cutoffs)
        kinds = PLAIN if weights is None else PLAIN + PROPENSITY
        self.names = tuple(f"{kind}@{k}" for kind in kinds for k in cutoffs)
        self.rows = 0
        self._gained, self._possible = [0] * len(self.names), [0] * len(self.names)
        shape = (len(self.cutoffs), num_labels)
        self._hits, self._answers = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        self.true = np.zeros(num_labels, dtype=np.int64)

    def add(self, ranked: Int64Array, truth: Positives) -> None:
        """Count a block of rows: label numbers by descending score (B, K), −1 where one is missing, and the truth (B, L)."""
        if truth.num_labels != self.num_labels:
            raise ValueError(f"metrics: truth over {truth.num_labels} labels, the tally has {self.num_labels}")
        for start in range(0, len(truth), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(truth)))
            self._add(ranked[start : start + BLOCK], truth.take(rows))
        if len(ranked) != len(truth):
            raise ValueError(f"metrics: {len(ranked)} ranked rows but {len(truth)} true ones")

    def merge(self, other: Tally) -> None:
        """Count what another tally of the same labels, weights and cutoffs has counted."""
        if (other.names, other.num_labels) != (self.names, self.num_labels):
            raise ValueError("metrics: tallies of different figures or labels")
        self.rows += other.rows
        for mine, added in ((self._gained, other._gained), (self._possible, other._possible)):
            mine[:] = [one + more for one, more in zip(mine, added, strict=True)]
        self._hits += other._hits
        self._answers += other._answers
        self.true += other.true

    @property
    def hits(self) -> Int64Array:
        """Return how often each label was a right answer among the first k (cutoffs, L)."""
        return self._hits.cumsum(axis=0)

    @property
    def answers(self) -> Int64Array:
        """Return how often each label was an answer among the first k (cutoffs, L)."""
        return self._answers.cumsum(axis=0)

    def figures(self) -> dict[str, float]:
        """Return all figures in percent by name: those of rows (`of_rows`), then coverage and the macro-averages over labels.

        coverage@k is the share of the labels true of some row that were a right answer at least once; the macro-averages are
        means over the same labels, precision 0 where a label was no answer.
        """
        rows = {
            name: 100 * gained / possible if possible else 0.0
            for name, gained, possible in zip(self.names, self._gained, self._possible, strict=True)
        }
        judged = self.true > 0
        true, right, said = self.true[judged], self.hits[:, judged], self.answers[:, judged]
        of_labels = {
            "coverage": right > 0,
            "macroP": right / np.maximum(said, 1),
            "macroR": right / np.maximum(true, 1),
            "macroF1": 2 * right / np.maximum(said + true, 1),
        }
        means = {
            kind: 100 * values.mean(axis=1) if judged.any() else np.zeros(len(values)) for kind, values in of_labels.items()
        }
        return rows | {
            f"{kind}@{k}": float(mean) for kind, of in means.items() for k, mean in zip(self.cutoffs, of, strict=True)
        }

    def _add(self, ranked: Int64Array, truth: Positives) -> None:
        rows = of_rows(ranked, truth, self.weights, self.cutoffs)
        for sums, values in ((self._gained, rows.gained), (self._possible, rows.possible)):
            whole = np.rint(values * UNIT).astype(np.int64).sum(axis=1).tolist()
            sums[:] = [one + more for one, more in zip(sums, whole, strict=True)]
        start = 0
        for number, k in enumerate(self.cutoffs):
            part, right = ranked[:, start:k], rows.found[:, start : min(k, ranked.shape[1])]
            np.add.at(self._answers[number], part[part >= 0], 1)
            np.add.at(self._hits[number], part[right], 1)
            start = k
        self.true += truth.counts()
        self.rows += len(truth)


def measure(
    given: Int64Array | Any,
    truth: Positives | Any,
    weights: Float64Array | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
    *,
    excluded: Positives | None = None,
    threads: int | None = None,
    report: Callable[[int], None] | None = None,
) -> Tally:
    """Return the tally of a whole split, counted by `threads` (as many as there are processors).

    `given` holds label numbers by descending score (N, K), or is a scipy sparse matrix of scores (N, L); `truth` is Positives
    or a scipy sparse matrix (N, L); `excluded` pairs leave the answers first. `report` gets the number of rows of each block.
    """
    truth = truth_of(truth)
    scores = predictions(given) if sp.issparse(given) else None
    shape = (len(truth), truth.num_labels)
    if scores is not None and scores.shape != shape:
        raise ValueError(f"metrics: scores of shape {scores.shape}, but truth of {shape}")
    if len(truth) != given.shape[0]:
        raise ValueError(f"metrics: {given.shape[0]} ranked rows but {len(truth)} true ones")
    threads = threads or min(len(os.sched_getaffinity(0)), 8)

    def count(thread: int) -> Tally:
        tally = Tally(truth.num_labels, weights, cutoffs)
        for start in range(thread * BLOCK, len(truth), threads * BLOCK):
            rows = slice(start, min(start + BLOCK, len(truth)))
            numbers = np.arange(rows.start, rows.stop)
            if scores is not None:
                ranked = top(scores, tally.cutoffs[-1], excluded, rows)
            else:
                ranked = given[rows] if excluded is None else without(given[rows], excluded.take(numbers))
            tally.add(ranked, truth.take(numbers))
            if report is not None:
                report(len(numbers))
        return tally

    with ThreadPoolExecutor(threads) as pool:
        first, *rest = pool.map(count, range(threads))
    for other in rest:
        first.merge(other)
    return first
