"""Copies of a shard as the front sees them: which one to ask, whether it hangs, and when to ask another one as well."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FEW = 20  # answers that are too few to know a 95th percentile by
FIRST_DELAY_S = 0.05  # then
SHORTEST_DELAY_S = 0.002  # below it, two copies would often search for the same answer
HANGS_S = 0.5  # without an answer that nobody waits for any more
KEPT = 256  # of the last answers


@dataclass(eq=False)
class Replica:
    """One copy of a shard, the process behind `actor` (None while there is none) on the node `node`.

    `late` are the calls that nobody waits for any more, by when they were sent (monotonic seconds): with one that has been out
    for `HANGS_S`, the copy counts as hanging until it answers. `loaded` are the keys of the versions that it has.
    """

    shard: int
    number: int
    actor: Any = None
    node: str = ""
    loaded: set[str] = field(default_factory=set)
    late: dict[Any, float] = field(default_factory=dict)
    asked: int = 0

    @property
    def up(self) -> bool:
        """Whether it is there and does not hang."""
        return self.actor is not None and self.silent_s() < HANGS_S

    def silent_s(self) -> float:
        """Return for how long the oldest late call has been out."""
        now = time.monotonic()
        return now - min(list(self.late.values()), default=now)


class Delays:
    """How long answers of a shard take, and so when a second copy is asked: after what 95 of 100 do not take."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=KEPT)
        self._fresh = 0
        self._delay = FIRST_DELAY_S

    def note(self, seconds: float) -> None:
        """Take an answer's time into account."""
        self._seconds.append(seconds)
        self._fresh += 1

    @property
    def hedge_s(self) -> float:
        """Return after how many seconds to ask another copy as well."""
        if len(self._seconds) >= FEW and self._fresh >= FEW // 2:  # a percentile takes a while: not for every question
            self._delay = max(SHORTEST_DELAY_S, float(np.percentile(self._seconds, 95)))
            self._fresh = 0
        return self._delay


@dataclass(eq=False)
class Call:
    """A question that is out at one copy."""

    replica: Replica
    sent: float = field(default_factory=time.monotonic)
    again: bool = False  # whether it is the second try, after changes that the copy had missed


__all__ = ["Call", "Delays", "Replica"]
