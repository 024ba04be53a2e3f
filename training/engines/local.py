"""The blocks one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from training.engines.base import Block, Engine, Result


class LocalEngine(Engine):
    """One worker, which is this process; its threads are torch's and the kernels'."""

    def run(self, make: Callable[[], Callable[[Block], Result]], blocks: Iterable[Block]) -> Iterator[Result]:
        """Yield the results in the order of the blocks."""
        work = make()
        for block in blocks:
            yield work(block)
