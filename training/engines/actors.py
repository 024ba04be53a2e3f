"""The blocks on a Ray cluster: stateful actors that are given blocks one by one; what a dead one had goes to another.

Ray's own retries are off. It would restart an actor where there is room, and its blocks would wait for that, for ever on a
cluster that has shrunk (docs/adr/0012).
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic

from annotated_types import Ge

from dexml.errors import InputError
from training.engines.base import Block, Engine, Result
from training.engines.session import session

AHEAD = 2  # blocks that a worker has at once: the next one travels while it works
DEATHS = 3  # of workers that had the same block, or of workers in a row that never began
START_SECONDS = 300.0  # without any worker at all


class RayEngine(Engine):
    """Actors of one processor each: `workers` of them, by default one a processor, on this machine or at `address`."""

    def __init__(self, *, workers: Annotated[int, Ge(1)] | None = None, address: str | None = None) -> None:
        self.workers, self.address = workers, address

    def run(self, make: Callable[[], Callable[[Block], Result]], blocks: Iterable[Block]) -> Iterator[Result]:
        """Yield the results as they come."""
        with session(self.workers, self.address) as (ray, count):
            crew: _Crew[Block] = _Crew(ray, ray.put(make), count, deque(), iter(blocks))
            try:
                yield from crew.results()
            finally:
                crew.dismiss()


@dataclass(eq=False)
class _Crew(Generic[Block]):
    """The workers of a job: `waiting` for a block each, `starting`, and `busy` with one or two."""

    ray: Any
    make: Any
    size: int
    again: deque[Block]
    blocks: Iterator[Block]
    starting: dict[Any, Any] = field(default_factory=dict)  # a worker's first answer -> the worker
    busy: dict[Any, tuple[Any, Block]] = field(default_factory=dict)  # an answer to come -> the worker, the block
    at: Counter[Any] = field(default_factory=Counter)  # worker -> how many blocks it has
    deaths: Counter[int] = field(default_factory=Counter)  # a block, by identity -> how many workers died with it
    stillborn: int = 0

    def results(self) -> Iterator[Any]:
        """Yield the result of every block."""
        for _ in range(self.size):
            self.hire()
        began = time.monotonic()
        while True:
            self.hand_out()
            if not self.busy and self.at and not self.again:
                return
            if not self.at and time.monotonic() - began > START_SECONDS:
                raise InputError(f"--engine ray: no worker began in {START_SECONDS:.0f} s; no node has a free processor")
            done, _ = self.ray.wait([*self.busy, *self.starting], num_returns=1, timeout=5.0)
            for answer in done:
                yield from self.take(answer)
                began = time.monotonic()

    def hire(self) -> None:
        """Ask for another worker."""
        worker = self.ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Worker).remote()
        self.starting[worker.open.remote(self.make)] = worker

    def hand_out(self) -> None:
        """Give every worker the blocks that it may have, those of dead workers first."""
        for worker in [worker for most in range(AHEAD) for worker, has in self.at.items() if has <= most]:
            block = self.again.popleft() if self.again else next(self.blocks, None)
            if block is None:
                return
            self.busy[worker.work.remote(block)] = (worker, block)
            self.at[worker] += 1

    def take(self, answer: Any) -> Iterator[Any]:
        """Yield the result that has come; where its worker has died instead, hire another."""
        errors = self.ray.exceptions
        if answer in self.starting:
            worker = self.starting.pop(answer)
            try:
                self.ray.get(answer)
                self.at[worker] = self.stillborn = 0
            except errors.RayTaskError as error:
                raise error.cause from None
            except errors.RayError as error:
                self.stillborn += 1
                if self.stillborn >= DEATHS:
                    raise InputError(f"--engine ray: {DEATHS} workers in a row died at their start ({_line(error)})") from None
                self.hire()
        elif answer in self.busy:
            worker, block = self.busy[answer]
            try:
                result = self.ray.get(answer)
            except errors.RayTaskError as error:
                raise error.cause from None
            except errors.RayError as error:
                self.lose(worker, _line(error))
                return
            del self.busy[answer]
            self.at[worker] -= 1
            self.deaths.pop(id(block), None)
            yield result

    def lose(self, worker: Any, why: str) -> None:
        """Put the blocks of a dead worker in front and hire another."""
        for answer in [answer for answer, (of, _) in self.busy.items() if of is worker]:
            _, block = self.busy.pop(answer)
            self.deaths[id(block)] += 1
            if self.deaths[id(block)] >= DEATHS:
                raise InputError(f"--engine ray: {DEATHS} workers died with the same block of texts ({why})")
            self.again.append(block)
        del self.at[worker]
        self.hire()

    def dismiss(self) -> None:
        """End all workers."""
        for worker in [*self.at, *self.starting.values()]:
            self.ray.kill(worker)


class _Worker:
    """What runs in an actor."""

    def __init__(self) -> None:
        self.call: Callable[[Any], Any] | None = None

    def open(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        """Make what is called on the blocks."""
        self.call = make()

    def work(self, block: Any) -> Any:
        """Call it."""
        assert self.call is not None, "open comes before work"
        return self.call(block)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
