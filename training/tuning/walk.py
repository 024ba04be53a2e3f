"""Tabu search over a grid of ordered values: the walk alone, without Optuna, so that it can be judged by the thousand.

Glover's method as hyper-parameter searches use it (arXiv 2202.09196): from where it stands, the walk evaluates its neighbours,
±1 step along one axis, and goes to the best that is not tabu, *even where that is worse*: so it gets out of small hollows. The
last `tenure` points that it stood on are tabu; aspiration lets one of them in that is better than any it stood on. What was
evaluated is kept, and costs nothing when it is met again. Where nothing better was found for `patience` moves, or where every
neighbour is tabu, the walk goes on from a random point that was never evaluated.

The paper leaves the form of the list open. Here points are listed, not moves: that finds more (docs/methods/tuning.md). While
a point's value stays what it was, no listed point can be better than the best: aspiration is for values that are told anew.
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

    It starts at `start`, or at random. The trace depends on the arguments and on what is told, and on nothing else.
    """

    def __init__(
        self, sizes: Sequence[int], *, tenure: int = 8, patience: int = 20, seed: int = 0, start: Place | None = None
    ) -> None:
        self.sizes = tuple(sizes)
        self.patience = patience
        self.keys: dict[Place, Key] = {}
        self.moves: list[Move] = []
        self._random = np.random.default_rng(seed)
        self._tabu: deque[Place] = deque(maxlen=tenure)
        self._best: Key = WORST
        self._idle = 0
        self._go(Move(self._drawn() if start is None else start, "start"))

    @property
    def place(self) -> Place:
        """Where the walk stands."""
        return self.moves[-1].place

    def ask(self) -> Place | None:
        """Return the next point to evaluate, the same until it is told; None when all of the grid was evaluated."""
        while len(self.keys) < math.prod(self.sizes):
            for place in (self.place, *self._neighbours()):
                if place not in self.keys:
                    return place
            self._go(self._next())
        return None

    def tell(self, place: Place, key: Key) -> None:
        """Take down how bad a point is; any may be told, in any order."""
        self.keys[place] = key

    def _next(self) -> Move:
        """Return the next move of a walk whose neighbours are all evaluated."""
        self._idle += 1
        if self.keys[self.place] < self._best:
            self._best, self._idle = self.keys[self.place], 0
        open_ = [place for place in self._neighbours() if place not in self._tabu or self.keys[place] < self._best]
        if self._idle >= self.patience or not open_:
            self._idle = 0
            return Move(self._drawn(), "restart")
        place = min(open_, key=lambda some: self.keys[some])
        return Move(place, "aspiration" if place in self._tabu else "move")

    def _go(self, move: Move) -> None:
        self.moves.append(move)
        self._tabu.append(move.place)

    def _neighbours(self) -> Iterator[Place]:
        for axis, size in enumerate(self.sizes):
            for value in (self.place[axis] - 1, self.place[axis] + 1):
                if 0 <= value < size:
                    yield (*self.place[:axis], value, *self.place[axis + 1 :])

    def _drawn(self) -> Place:
        """Return a random point that was not evaluated; there is one."""
        while True:
            place = tuple(self._random.integers(0, self.sizes).tolist())
            if place not in self.keys:
                return place


__all__ = ["WORST", "Key", "Move", "Place", "TabuWalk"]
