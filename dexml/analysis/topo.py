"""TOPO: NOTEARS by topological swaps (Deng, Bello, Aragam & Ravikumar, ICML 2023): edges along the order of least loss.

min Q(W) over W of acyclic graphs. For an order of the nodes, W is each node's regression on those before it. The gradient of
h(W) = −log det(I − |W|), which is (I − |W|)⁻ᵀ, says for every edge that the order forbids how much walk there is against it:
where that is little, two nodes may change places. n rows of data, d nodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import expit

from dexml.analysis.dags import Float64Array
from dexml.types import Int64Array

SMALL, LARGE = 100, 400  # pairs tried in a round, and in one more where none of these helps
FLAT = 1e-3  # ξ: least |∂Q/∂W_ij| of a pair that is tried among the first
GAIN = 1e-10  # of the loss: below, a swap gains nothing that rounding could not
ENOUGH = 1e-9  # of a regression's loss: Newton's method ends where no more than that is to be gained
JITTER = 1e-9  # of the mean variance, added to each: columns may be sums of others
STEPS = 30  # of Newton's method at most

Told = Callable[[int, float], bool]
"""Hears how many rounds of swaps there were and the loss; says whether to stop."""


class Loss(ABC):
    """Q(W) = Σ_j Q_j of the nodes' regressions on those before them; `start` takes an order, which the rest is about."""

    @property
    @abstractmethod
    def nodes(self) -> int:
        """The number d of nodes."""

    @abstractmethod
    def start(self, order: Int64Array) -> Float64Array:
        """Take an order (d) of the nodes; return the loss of the node at each place (d)."""

    @abstractmethod
    def swapped(self, first: int, last: int) -> float:
        """Return the loss of the nodes from place `first` to `last`, if those two changed places."""

    @abstractmethod
    def weights(self) -> Float64Array:
        """Return W (d, d) of the order."""

    @abstractmethod
    def gradient(self, weights: Float64Array) -> Float64Array:
        """Return ∂Q/∂W (d, d)."""


class Squared(Loss):
    """Q = ‖X − XW‖²/2n of centred columns X (n, d), by one Cholesky factor of their covariance a round.

    With S = L·Lᵀ in the nodes' order, the residual of a place has the variance L_pp²; a swap changes those between alone, which
    are the factor of a block of (L·Lᵀ) with two rows exchanged.
    """

    def __init__(self, data: Float64Array) -> None:
        centred = data - data.mean(axis=0)
        self.covariance = centred.T @ centred / len(data)
        self.covariance += JITTER * np.trace(self.covariance) / len(self.covariance) * np.eye(len(self.covariance))
        self.order = np.arange(len(self.covariance), dtype=np.int64)
        self.factor = np.zeros_like(self.covariance)

    @property
    def nodes(self) -> int:
        """The number of columns."""
        return len(self.covariance)

    def start(self, order: Int64Array) -> Float64Array:
        """Take an order; return half the residual variances (d)."""
        self.order = order
        self.factor = np.linalg.cholesky(self.covariance[np.ix_(order, order)])
        return np.asarray(np.diag(self.factor) ** 2 / 2, dtype=np.float64)

    def swapped(self, first: int, last: int) -> float:
        """Return half the sum of the residual variances between, after the swap."""
        block = self.factor[first : last + 1, first : last + 1].copy()
        block[[0, -1]] = block[[-1, 0]]
        return float((np.diag(np.linalg.cholesky(block @ block.T)) ** 2).sum() / 2)

    def weights(self) -> Float64Array:
        """Return the coefficients: in order, X = XW + E with S = (I − W)⁻ᵀ D (I − W)⁻¹, so that W = I − (L/diag L)⁻ᵀ."""
        unit = self.factor / np.diag(self.factor)[None, :]
        inverse = solve_triangular(unit, np.eye(self.nodes), lower=True, unit_diagonal=True)
        found = np.zeros_like(self.covariance)
        found[np.ix_(self.order, self.order)] = np.triu(-np.asarray(inverse).T, 1)
        return np.asarray(found, dtype=np.float64)

    def gradient(self, weights: Float64Array) -> Float64Array:
        """Return −S(I − W)."""
        return np.asarray(self.covariance @ (weights - np.eye(self.nodes)))


class Logistic(Loss):
    """Q = Σ_j mean(log(1 + e^z_j) − x_j·z_j) with z_j = b_j + (XW)_j, for X (n, d) of 0 and 1, and `ridge`/2·‖W‖².

    Each node's regression by Newton's method, from the coefficients that it had; a regression that was made is kept. The ridge
    keeps coefficients finite where nodes before separate the rows.
    """

    def __init__(self, data: Float64Array, ridge: float = 1e-3) -> None:
        rows, counts = np.unique(data, axis=0, return_counts=True)  # most rows have few of the labels, and are alike
        self.data = np.hstack([rows, np.ones((len(rows), 1))])
        self.share = counts / len(data)
        self.ridge = ridge
        self.order = np.arange(data.shape[1], dtype=np.int64)
        self.kept: dict[tuple[int, bytes], tuple[float, Float64Array]] = {}
        self.last = np.zeros((data.shape[1], data.shape[1] + 1))  # coefficients of each node, b last

    @property
    def nodes(self) -> int:
        """The number of columns."""
        return len(self.last)

    def start(self, order: Int64Array) -> Float64Array:
        """Take an order; return each place's loss (d), its part of the ridge in it."""
        self.order = order
        costs = np.zeros(self.nodes)
        for place, node in enumerate(order.tolist()):
            costs[place], self.last[node] = self._fitted(node, order[:place])
        return costs

    def swapped(self, first: int, last: int) -> float:
        """Return the loss of the nodes between, after the swap."""
        order = self.order.copy()
        order[[first, last]] = order[[last, first]]
        return sum(self._fitted(int(order[place]), order[:place])[0] for place in range(first, last + 1))

    def weights(self) -> Float64Array:
        """Return the coefficients."""
        return np.ascontiguousarray(self.last[:, :-1].T)

    def gradient(self, weights: Float64Array) -> Float64Array:
        """Return Xᵀ(σ(Z) − X)/n + ridge·W."""
        data = self.data[:, :-1]
        residual = expit(data @ weights + self.last[:, -1]) - data
        return np.asarray(data.T @ (residual * self.share[:, None]) + self.ridge * weights)

    def _fitted(self, node: int, before: Int64Array) -> tuple[float, Float64Array]:
        before = np.sort(before)
        key = (node, before.tobytes())
        if key not in self.kept:
            self.kept[key] = self._newton(node, before)
        return self.kept[key]

    def _newton(self, node: int, before: Int64Array) -> tuple[float, Float64Array]:
        """Return the least loss and its coefficients (d + 1); a step is halved until the loss falls."""
        columns = np.append(before, self.nodes)
        inputs, target = self.data[:, columns], self.data[:, node]
        penalty = np.append(np.full(len(before), self.ridge), JITTER)

        def loss(of: Float64Array) -> float:
            score = inputs @ of
            return float(self.share @ (np.logaddexp(0, score) - target * score) + (penalty * of * of).sum() / 2)

        found = self.last[node, columns].copy()
        value = loss(found)
        for _ in range(STEPS):
            chance = expit(inputs @ found)
            gradient = inputs.T @ (self.share * (chance - target)) + penalty * found
            curvature = (inputs * (self.share * chance * (1 - chance))[:, None]).T @ inputs + np.diag(penalty)
            step = np.linalg.solve(curvature, gradient)
            if gradient @ step <= 2 * ENOUGH * value:
                break
            size = 1.0
            while (lower := loss(found - size * step)) > value and size > 1e-6:
                size /= 2
            found, value = found - size * step, lower
        whole = np.zeros(self.nodes + 1)
        whole[columns] = found
        return value, whole


@dataclass(frozen=True, eq=False)
class Ordered:
    """What the search ends with: an `order` (d) of the nodes, `weights` W (d, d) along it, and the loss before each round.

    `finished` is False where somebody stopped the search before it could find no better swap.
    """

    weights: Float64Array
    order: Int64Array
    losses: tuple[float, ...]
    finished: bool


def topo(loss: Loss, order: Int64Array, told: Told = lambda rounds, value: False) -> Ordered:
    """Return the order that no swap of two nodes tried betters, from `order` on; the loss falls in every round.

    A round tries the SMALL pairs with the least walk against them, of those whose edge would lower the loss at all, or else
    the LARGE least of all, and makes the swaps that gain most and do not overlap: then their gains add up.
    """
    order = order.copy()
    costs = loss.start(order)
    losses = [float(costs.sum())]
    while not told(len(losses) - 1, losses[-1]):
        weights = loss.weights()
        pairs = _forbidden(weights, order)
        steep = np.abs(loss.gradient(weights)[order[pairs[:, 1]], order[pairs[:, 0]]]) > FLAT
        made: list[tuple[int, int]] = []
        for tried in (pairs[steep][:SMALL], pairs[:LARGE]):
            made = list(_apart(_gains(loss, costs, tried)))
            if made:
                break
        if not made:
            return Ordered(weights, order, tuple(losses), True)
        for first, last in made:
            order[[first, last]] = order[[last, first]]
        costs = loss.start(order.copy())
        losses.append(float(costs.sum()))
    return Ordered(loss.weights(), order, tuple(losses), False)


def _forbidden(weights: Float64Array, order: Int64Array) -> Int64Array:
    """Return the pairs of places (first, last) of all edges last → first, those with the least ∂h first."""
    walks = np.linalg.inv(np.eye(len(weights)) - np.abs(weights)).T  # [i, j] is the weight of walks j ⇝ i
    first, last = np.triu_indices(len(order), 1)
    by_walk = np.argsort(walks[order[last], order[first]], kind="stable")
    return np.stack([first[by_walk], last[by_walk]], axis=1).astype(np.int64)


def _gains(loss: Loss, costs: Float64Array, pairs: Int64Array) -> list[tuple[float, int, int]]:
    """Return (gain, first, last) of the swaps that lower the loss, the best first."""
    least = GAIN * max(1.0, abs(float(costs.sum())))
    found = [(float(costs[one : two + 1].sum()) - loss.swapped(one, two), one, two) for one, two in pairs.tolist()]
    return sorted((of for of in found if of[0] > least), reverse=True)


def _apart(gains: list[tuple[float, int, int]]) -> Iterator[tuple[int, int]]:
    """Give the swaps, the best first, that lie apart from all given before."""
    taken: list[tuple[int, int]] = []
    for _, first, last in gains:
        if all(last < one or two < first for one, two in taken):
            taken.append((first, last))
            yield first, last
