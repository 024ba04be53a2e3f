"""The smallest turn of a query after which an index returns exactly a given ordered list, or the proof that nothing does.

QuadAttacK's programme (Paniagua, Wu and others, NeurIPS 2023; github.com/thomaspaniagua/quadattack) for the list t_1 … t_K:
min ‖z − q‖ with ⟨e_{t_i} − e_{t_{i+1}}, z⟩ ≥ m‖z‖ for i < K and ⟨e_{t_K} − e_c, z⟩ ≥ m‖z‖ for every other label c. Queries
are renormalised by whoever searches, and so the margin is one of cosines, whatever the length of z: the solutions are a convex
cone, and z/‖z‖ is the unit vector of it at the smallest angle to q. For a margin h fixed it is a quadratic programme; h = m‖z‖
is a fixed point, and a contraction exactly where the list can be returned with the margin m (its slope is at most m/μ, μ the
largest margin possible).

Of the L inequalities only those of a work set are looked at: the index' first labels, and then whatever it says is violated.
Past KEPT labels those that are not held are let go. The work set alone proves a list unreachable: the others only add to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dexml.types import Int64Array
from index.audit.programme import Certificate, Float64Array, nearest, widest
from index.base import ChangingIndex

MARGIN = 1e-5  # of cosines: ten times what float32 rounds off an inner product
WORK = 64  # labels that the index is asked for beside the list
KEPT = 400  # labels up to which those whose inequality is not held stay: near the limits of what is reachable they come back
ROUNDS = 200
_SLACK = 1e-3  # of the margin
_FAR = 2.0  # a z longer than that is where there may be none
_NEAR = 1e-3  # cos of the angle from which on a list counts as a right angle away or more


@dataclass(frozen=True, eq=False)
class Push:
    """What it takes to get the ordered list `target` int64 (K): the unit vector `row` float32 (D), `angle` degrees off q.

    It is the nearest such vector where it is less than 90° off, and the one of the largest margin where none is that near.
    Where no unit vector is answered with it at the margin asked for, `row` is None, and the `certificate` proves it. With
    neither, `rounds` rounds were not enough to tell.
    """

    target: Int64Array
    rounds: int
    row: Tensor | None = None
    angle: float = math.nan
    certificate: Certificate | None = None

    @property
    def reachable(self) -> bool | None:
        """Whether there is such a vector; None where that is not known."""
        return True if self.row is not None else False if self.certificate is not None else None


def pushes(index: ChangingIndex, queries: Tensor, targets: Int64Array, margin: float = MARGIN) -> list[Push]:
    """Return the smallest push of each of the unit rows `queries` float32 (B, D) to its ordered list of rows `targets` (B, K).

    The index is searched for all queries at once. It should be exact: what an approximate one does not find is not looked at.
    Raises ValueError for a list that names a label twice, and for a query of length 0.
    """
    if len(queries) == 0:
        return []
    k = targets.shape[1]
    depth = min(k + WORK, len(index))
    rows = index.snapshot(targets.reshape(-1)).double().numpy().reshape(*targets.shape, -1)
    tasks = [
        _Task(query, target, of_target, margin)
        for query, target, of_target in zip(queries.double().numpy(), targets, rows, strict=True)
    ]
    for number in range(ROUNDS):
        active = [task for task in tasks if not task.done]
        if not active:
            break
        asked = torch.from_numpy(np.stack([task.unit for task in active])).float()
        found = index.search(asked, depth, 1.0).ids.numpy()
        for task, ids in zip(active, found, strict=True):
            ids = ids[ids >= 0]
            task.see(ids, index.snapshot(ids).double().numpy(), first=number == 0)
            if not task.done:
                task.solve()
    return [task.push() for task in tasks]


class _Task:
    """One query and its list: the programme over the work set, solved anew each time that the index has added to it."""

    def __init__(self, query: Float64Array, target: Int64Array, rows: Float64Array, margin: float) -> None:
        length = float(np.linalg.norm(query))
        if length == 0 or len(set(target.tolist())) < len(target):
            raise ValueError("a push needs a query of length above 0, and a list that names each label once")
        self.query, self.target, self.rows, self.margin = query / length, target, rows, margin
        self.ordered = rows[:-1] - rows[1:]
        self.others: Int64Array = np.zeros(0, dtype=np.int64)
        self.other_rows: Float64Array = np.zeros((0, rows.shape[1]))
        self.unit: Float64Array = self.query
        self.at = margin
        self.seen: tuple[float, float] | None = None  # the last h, and m‖z‖ there
        self.settled = self.done = False
        self.rounds = 0
        self.answered = False
        self.certificate: Certificate | None = None

    def see(self, ids: Int64Array, rows: Float64Array, *, first: bool) -> None:
        """Take what the index returns for `unit`, the labels `ids` (n) with their rows (n, D): done where that is the list."""
        gaps = (self.rows[-1] - rows) @ self.unit
        violated = gaps < (1 - 2 * _SLACK) * self.margin
        new = (violated | first) & ~np.isin(ids, self.target) & ~np.isin(ids, self.others)
        self.others = np.concatenate([self.others, ids[new]])
        self.other_rows = np.concatenate([self.other_rows, rows[new]])
        if self.settled and not new.any():
            self.done = True
            self.answered = bool(np.array_equal(ids[: len(self.target)], self.target))

    def solve(self) -> None:
        """Solve over the work set; done where that proves that there is no solution, or the solver gives up."""
        self.rounds += 1
        matrix = np.vstack([self.ordered, self.rows[-1] - self.other_rows])
        if len(matrix) == 0:
            self.settled = True
            return
        try:
            found = nearest(matrix, self.at, self.query)
            if found is None or np.linalg.norm(found[0]) > _FAR:
                self._prove(matrix)
        except RuntimeError:  # the active-set method does not end
            self.done = True
            return
        if found is None or self.done:
            self.done = True
            return
        vector, multipliers = found
        length = float(np.linalg.norm(vector))
        self.unit = vector / length
        held = (multipliers[len(self.ordered) :] > 0) | (len(self.others) <= KEPT)
        self.others, self.other_rows = self.others[held], self.other_rows[held]
        self._settle(self.margin * length)

    def push(self) -> Push:
        """Return what was found."""
        if not self.answered:
            return Push(self.target, self.rounds, certificate=self.certificate)
        angle = 2 * math.asin(min(1.0, float(np.linalg.norm(self.unit - self.query)) / 2))
        return Push(self.target, self.rounds, torch.from_numpy(self.unit).float(), math.degrees(angle))

    def _settle(self, after: float) -> None:
        """Move h towards the fixed point, `after` being m‖z‖ at the present one; by the secant where it is far.

        Where the whole cone is a right angle away or more, z tends to 0 with h: the margin is more than enough there.
        """
        before, self.seen = self.seen, (self.at, after)
        self.settled = abs(after - self.at) <= _SLACK * after or (after < self.at and after < _NEAR * self.margin)
        if self.settled:
            return
        self.at = after
        if before is not None and before[0] != self.seen[0]:
            slope = (after - before[1]) / (self.seen[0] - before[0])
            if 0.1 < slope < 0.999:
                self.at = max((after - slope * self.seen[0]) / (1 - slope), after / 100)

    def _prove(self, matrix: Float64Array) -> None:
        largest, weights = widest(matrix)
        if largest > self.margin:
            return
        better = np.concatenate([self.target[:-1], np.full(len(self.others), self.target[-1])])
        worse = np.concatenate([self.target[1:], self.others])
        used = weights > 0
        self.certificate = Certificate(better[used], worse[used], weights[used], largest)
        self.done = True
