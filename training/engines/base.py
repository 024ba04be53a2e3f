"""What an engine is: one function made once a worker, and called on every block of a job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Block = TypeVar("Block")
Result = TypeVar("Result")


class Engine(ABC):
    """Who runs the blocks: the same function in one process or in many, which gives the same results."""

    @abstractmethod
    def run(self, make: Callable[[], Callable[[Block], Result]], blocks: Iterable[Block]) -> Iterator[Result]:
        """Yield the result of every block once, in any order; `blocks` are taken as they are needed.

        `make()` makes what a worker calls on a block. A block whose worker dies is run again: what it leaves behind must be
        the same however often that is. Raises what the function raises, and InputError where the workers keep dying.
        """
