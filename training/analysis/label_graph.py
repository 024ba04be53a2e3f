"""`dexml analyze labels`: which labels depend on which, from the rows they share, by TOPO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dexml.analysis.dags import Float64Array, thresholded, varsortability
from dexml.analysis.topo import Logistic, Loss, Ordered, Squared, topo
from dexml.errors import InputError
from dexml.types import Int64Array, Positives

MOST_ROWS = 50_000  # drawn of more
THRESHOLDS: Mapping[str, float] = {"squared": 0.3, "logistic": 1.0}  # of probability, and of log-odds
LEAST = 2  # rows of a label that takes part

Told = Callable[[str, int, float], bool]
"""Hears which search it is, the rounds of swaps made and the loss; says whether to stop."""


@dataclass(frozen=True)
class Asked:
    """A `loss`, and which edges stay: those with |W| above a `threshold`, by default that of THRESHOLDS."""

    loss: Literal["squared", "logistic"] = "squared"
    threshold: float | None = None

    @property
    def least(self) -> float:
        """The threshold."""
        return THRESHOLDS[self.loss] if self.threshold is None else self.threshold


@dataclass(frozen=True, eq=False)
class Found:
    """A graph of labels: their numbers (d), rows (d) and weights W (d, d) with [i, j] of i → j, and the search behind it.

    `sortable` is the varsortability of the graph, `scaled` the graph of standardised columns where the loss is squared.
    """

    labels: Int64Array
    counts: Int64Array
    weights: Float64Array
    search: Ordered
    sortable: float
    scaled: Float64Array | None

    @property
    def edges(self) -> Int64Array:
        """The edges (E, 2) by places, the strongest first."""
        there = np.argwhere(self.weights != 0)
        sizes = np.abs(self.weights[there[:, 0], there[:, 1]])
        return there[np.argsort(-sizes, kind="stable")].astype(np.int64)

    @property
    def finished(self) -> bool:
        """Whether nobody stopped the search."""
        return self.search.finished

    def agreement(self) -> tuple[int, int, int] | None:
        """Return how many edges standardised columns give in all, the same way round, and turned round."""
        if self.scaled is None:
            return None
        own, other = self.weights != 0, self.scaled != 0
        return int(other.sum()), int((own & other).sum()), int((own & other.T).sum())


def chosen(positives: Positives, count: int) -> Int64Array:
    """Return the numbers of the `count` most frequent labels, ascending; not those of all rows, or of next to none."""
    counts = positives.counts()
    order = np.argsort(-counts, kind="stable")
    there = order[(counts[order] >= LEAST) & (counts[order] < len(positives))][:count]
    if len(there) < 2:
        raise InputError(f"data: fewer than two labels have between {LEAST} and {len(positives) - 1} rows")
    return np.sort(there).astype(np.int64)


def drawn(rows: int, seed: int) -> Int64Array:
    """Return the numbers of the rows that are read: all, or MOST_ROWS of more."""
    if rows <= MOST_ROWS:
        return np.arange(rows, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).permutation(rows)[:MOST_ROWS]).astype(np.int64)


def find(positives: Positives, labels: Int64Array, scores: Float64Array | None, asked: Asked, told: Told) -> Found:
    """Return the graph of `labels` (d) in the rows of `positives` (N, L).

    Of `scores` (N, d), how well a model thinks a label fits a row, each label's own is taken away by a least-squares line
    first: what is left is how labels depend on labels beyond what the text says. Raises InputError for scores with a
    logistic loss.
    """
    data = positives.matrix()[:, labels].toarray().astype(np.float64)
    counts = data.sum(axis=0).astype(np.int64)
    if scores is not None:
        if asked.loss == "logistic":
            raise InputError("--scores: what scores explain is taken away by least squares; use --loss squared")
        data = explained_away(data, scores)
    variances = data.var(axis=0)
    if not (variances > 0).all():
        raise InputError(
            f"data: label number {labels[np.argmin(variances)]} is the same in all rows drawn; ask for fewer labels"
        )
    start = np.argsort(-counts, kind="stable").astype(np.int64)  # the general before the special
    loss: Loss = Squared(data) if asked.loss == "squared" else Logistic(data)
    search = topo(loss, start, lambda rounds, value: told("graph", rounds, value))
    weights = thresholded(search.weights, asked.least)
    scaled = None
    if asked.loss == "squared":
        again = topo(Squared(data / np.sqrt(variances)), start, lambda rounds, value: told("standardised", rounds, value))
        scaled = thresholded(again.weights, asked.least)
    return Found(labels, counts, weights, search, varsortability(weights, variances), scaled)


def explained_away(data: Float64Array, scores: Float64Array) -> Float64Array:
    """Return what is left of each column (N, d) after the least-squares line in its own score (N, d)."""
    centred, given = data - data.mean(axis=0), scores - scores.mean(axis=0)
    slopes = (centred * given).sum(axis=0) / np.maximum((given**2).sum(axis=0), 1e-300)
    return np.asarray(centred - slopes * given)
