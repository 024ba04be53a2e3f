"""What is asked of shards, what they answer, and what an engine is that carries both. Needs neither torch nor Ray."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dexml.errors import InputError
from dexml.positives import Float32Array, Int64Array
from index.patience import Patience

Kind = Literal["live", "published", "partition"]


class ShardsMissing(Exception):
    """No copy of these shards answers."""

    def __init__(self, shards: Sequence[int]) -> None:
        super().__init__(f"shards {', '.join(map(str, shards))} do not answer")
        self.shards = tuple(shards)


class TooLate(Exception):
    """The time for an answer is up."""


class Step(NamedTuple):
    """A change of one shard: `rows` float32 (n, D) with their `numbers` int64 (n), and the numbers that are `gone`."""

    rows: Float32Array
    numbers: Int64Array
    gone: Int64Array


class Question(NamedTuple):
    """What every shard is asked: the k best for `queries` float32 (B, D) of the version that was loaded as `key`.

    `steps` is how many changes each shard has been sent since: one that counts otherwise must not answer. "live" asks for the
    labels as they are now, reranked; "published" for those of the version; "partition" for log Z over all live labels alone.
    """

    key: str
    steps: tuple[int, ...]
    kind: Kind
    queries: Float32Array
    k: int
    temperature: float


class Reply(NamedTuple):
    """What a shard answers: `ids` int64 and `scores` float32 (B, K), and `log_z` float64 (B) over all its labels, if known.

    It is that of `key` after `step` changes; `ids` is None where that is not what was asked for, and `step` −1 where `key` is
    not loaded. `seconds` is what the search took there.
    """

    key: str
    step: int
    ids: Int64Array | None = None
    scores: Float32Array | None = None
    log_z: npt.NDArray[np.float64] | None = None
    seconds: float = 0.0


class Loaded(NamedTuple):
    """What a shard says of a version that it loaded, or the `fault` for which it did not."""

    fault: str = ""
    exact: bool = True
    about: dict[str, object] = {}  # noqa: RUF012 — a tuple's default is not shared state


class Engine(ABC):
    """Carries questions to N shards, each of which holds its part of one or two versions."""

    shards: int

    @abstractmethod
    def load(self, key: str, folders: Sequence[Path]) -> list[Loaded]:
        """Let shard s open `folders[s]` as `key`, and bring it to full speed; every shard has, when this returns.

        Raises InputError when a shard refuses, and none keeps it then.
        """

    @abstractmethod
    def drop(self, key: str) -> None:
        """Let go of a version; returns at once."""

    @abstractmethod
    def change(self, key: str, shard: int, step: int, change: Step) -> None:
        """Send a shard its change number `step`, the first being 1; returns at once."""

    @abstractmethod
    def ask(self, question: Question, patience: Patience, missed: Callable[[int, int], Sequence[Step]]) -> list[Reply | None]:
        """Return the answers of all shards, each to this question and no other.

        `missed(shard, step)` gives the changes that a shard has not seen after `step` of them. Raises TooLate when the time is
        up, and ShardsMissing; with `patience.partial` the answers of such shards are None and their numbers in
        `patience.missing`, unless none answers.
        """

    @property
    @abstractmethod
    def up(self) -> tuple[int, ...]:
        """How many copies of each shard answer."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return what carries, and where the shards are."""


def refused(loaded: Sequence[Loaded]) -> None:
    """Raise InputError for the first shard that did not load."""
    for shard, told in enumerate(loaded):
        if told.fault:
            raise InputError(f"shard {shard} of {len(loaded)}: {told.fault}")


__all__ = ["Engine", "Kind", "Loaded", "Question", "Reply", "ShardsMissing", "Step", "TooLate", "refused"]
