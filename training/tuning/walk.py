"""Tabu search over a grid of ordered values: the walk alone, without Optuna, so that it can be judged by the thousand.

Glover's method as hyper-parameter searches use it (arXiv 2202.09196). The walk begins at the best of a few random points. From
where it stands it evaluates its neighbours, ±1 step along one axis, and goes to the best that is not tabu, *even where that is
worse*: so it gets out of small hollows. The last `tenure` points that it stood on are tabu; aspiration lets one of them in that
is better than any it stood on. What was evaluated is kept, and costs nothing when it is met again. Where nothing better was
found for `patience` moves, or where every neighbour is tabu, it begins anew among points that were never evaluated.

Two things are ours, and measured (docs/methods/tuning.md): `probes`, how many points more than one it begins among, and
`eager`: the first neighbour better than where it stands is taken at once, the last direction tried first. The paper leaves the
form of the list open: here points are listed, not moves, which finds more. While a point's value stays what it was, no listed
point can be better than the best; aspiration is for values that are told anew.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

Place = tuple[int, ...]  # a point of the grid, as the number of its value on each axis
Key = tuple[float, ...]  # how bad a point is, compared from the left: what it breaks of the bounds, then the objective
WORST: Key = (math.inf,)


class Move(NamedTuple):
    """A step of the walk: to where, and how: "start", "move", "aspiration" or "restart"."""

    place: Place
    how: Literal["start", "move", "aspiration", "restart"]


class TabuWalk:
    """The walk over a grid with `sizes` values on its axes: `ask` says what to evaluate next, `tell` how bad it was.

    `start`, where it is given, is the first point. The trace depends on the arguments and on what is told, and on nothing else.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        tenure: int = 8,
        patience: int = 20,
        probes: int = 4,
        eager: bool = True,
        seed: int = 0,
        start: Place | None = None,
    ) -> None:
        self.sizes = tuple(sizes)
        self.patience, self.probes, self.eager = patience, probes, eager
        self.keys: dict[Place, Key] = {}
        self.moves: list[Move] = []
        self._random = np.random.default_rng(seed)
        self._tabu: deque[Place] = deque(maxlen=tenure)
        self._best: Key = WORST
        self._idle = 0
        self._last: tuple[int, int] | None = None  # the axis and the step of the last move
        self._drawn = self._draw([] if start is None else [start])  # the points it begins among, until it stands on one

    @property
    def place(self) -> Place:
        """Where the walk stands, or stood until it began anew."""
        return self.moves[-1].place

    def ask(self) -> Place | None:
        """Return the next point to evaluate, the same until it is told; None when all of the grid was evaluated."""
        while len(self.keys) < math.prod(self.sizes):
            place = next((place for place in self._wanted() if place not in self.keys), None)
            if place is not None:
                return place
            self._move()
        return None

    def tell(self, place: Place, key: Key) -> None:
        """Take down how bad a point is; any may be told, in any order."""
        self.keys[place] = key

    def _wanted(self) -> Iterator[Place]:
        """Yield what must be known before the walk moves on; no more, once a known one is reason enough to move."""
        if self._drawn:
            yield from self._drawn
            return
        for place, _ in self._neighbours():
            yield place
            if self.eager and self._open(place) and self.keys[place] < self.keys[self.place]:
                return

    def _move(self) -> None:
        """Go on, all that is wanted being known."""
        if self._drawn:
            self._go(min(self._drawn, key=lambda some: self.keys[some]), "restart" if self.moves else "start", None)
            self._drawn = []
            return
        known = {place: step for place, step in self._neighbours() if place in self.keys and self._open(place)}
        self._idle += 1
        if self._idle > self.patience or not known:
            self._idle, self._drawn = 0, self._draw([])
            return
        place = min(known, key=lambda some: self.keys[some])
        self._go(place, "aspiration" if place in self._tabu else "move", known[place])

    def _go(self, place: Place, how: Literal["start", "move", "aspiration", "restart"], step: tuple[int, int] | None) -> None:
        self.moves.append(Move(place, how))
        self._tabu.append(place)
        self._last = step
        if self.keys[place] < self._best:
            self._best, self._idle = self.keys[place], 0

    def _open(self, place: Place) -> bool:
        return place in self.keys and (place not in self._tabu or self.keys[place] < self._best)

    def _neighbours(self) -> Iterator[tuple[Place, tuple[int, int]]]:
        """Yield the neighbours and the axis and step to each, straight on first."""
        steps = [(axis, step) for axis in range(len(self.sizes)) for step in (-1, 1)]
        for axis, step in sorted(steps, key=lambda some: some != self._last):
            value = self.place[axis] + step
            if 0 <= value < self.sizes[axis]:
                yield (*self.place[:axis], value, *self.place[axis + 1 :]), (axis, step)

    def _draw(self, first: list[Place]) -> list[Place]:
        """Return `first` and random points never evaluated, 1 + `probes` in all, or as many as there are."""
        found = list(first)
        while len(found) < min(1 + self.probes, math.prod(self.sizes) - len(self.keys)):
            place = tuple(self._random.integers(0, self.sizes).tolist())
            if place not in self.keys and place not in found:
                found.append(place)
        return found


__all__ = ["WORST", "Key", "Move", "Place", "TabuWalk"]
