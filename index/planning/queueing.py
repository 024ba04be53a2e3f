"""What waiting adds: batches of queries over shards, event by event, under Poisson arrivals.

A row is a front and its S shards. Its front, like the service's one thread, has one batch at a time: it takes what waits
(≤ 64; 2 ms more after a batch of several), encodes, scatters, waits for the slowest shard, and merges. So a row is a queue
whose service time is a maximum, and between two batches nothing happens but hedged questions to other rows: a heap of a few
events a batch, with the shards of a row as one numpy vector, simulates a thousand shards in a second. simpy would have a
process for each of them, and two events for each of its answers.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
MOST, WAIT_S = 64, 0.002  # serve.settings: batch_queries, batch_wait_ms
WARM_UP = 0.1  # of the queries, which are not counted


@dataclass(frozen=True)
class Service:
    """Seconds that a batch of B takes: `before` and `after` at the front, `scan` at each shard, times a draw of `noise`.

    `noise(generator, S)` gives one factor a shard; by default all are 1.
    """

    before: Callable[[int], float]
    scan: Callable[[int], float]
    after: Callable[[int], float]
    noise: Callable[[np.random.Generator, int], Float64Array] = lambda generator, shards: np.ones(shards)


def stragglers(share: float, factor: float) -> Callable[[np.random.Generator, int], Float64Array]:
    """Return noise in which a `share` of a shard's answers takes `factor` times as long."""
    return lambda generator, shards: np.where(generator.random(shards) < share, factor, 1.0)


@dataclass(frozen=True)
class Simulated:
    """What N queries saw: `latency` (N) in seconds, `busy`, the share of time that a front was at work, the mean `batch`."""

    latency: Float64Array
    busy: float
    batch: float
    hedged: float = 0.0
    """Hedged answers a batch and shard."""

    def percentile(self, share: float) -> float:
        """Return the latency that this percentage of the queries did not exceed."""
        return float(np.percentile(self.latency, share))


@dataclass(eq=False)
class _Row:
    arrivals: Float64Array
    free: Float64Array  # (S): when each shard has done all that it was given
    head: int = 0  # the first query that waits
    crowded: bool = False  # the last batch had several
    busy: float = 0.0
    batches: int = 0
    latency: list[Float64Array] = field(default_factory=list)


@dataclass(eq=False)
class _Batch:
    row: int
    first: int
    size: int
    began: float
    done: Float64Array = field(default_factory=lambda: np.zeros(0))


def simulate(
    rate: float,
    shards: int,
    service: Service,
    *,
    queries: int = 20_000,
    rows: int = 1,
    hedge_s: float | None = None,
    most: int = MOST,
    wait_s: float = WAIT_S,
    seed: int = 0,
) -> Simulated:
    """Return what `queries`, `rate` a second and row, saw. A shard silent for `hedge_s` is asked again in the next row.

    A shard works first come, first served; whoever is asked twice is not told that the other has answered. Raises ValueError
    for hedging within one row.
    """
    if hedge_s is not None and rows < 2:
        raise ValueError("hedged questions need a second row")
    return _Run(rate, shards, service, queries, rows, hedge_s, most, wait_s, np.random.default_rng(seed)).go()


class _Run:
    def __init__(
        self,
        rate: float,
        shards: int,
        service: Service,
        queries: int,
        rows: int,
        hedge_s: float | None,
        most: int,
        wait_s: float,
        generator: np.random.Generator,
    ) -> None:
        self.shards, self.service, self.hedge_s, self.most, self.wait_s = shards, service, hedge_s, most, wait_s
        self.generator = generator
        each = -(-queries // rows)
        self.rows = [_Row(generator.exponential(1 / rate, each).cumsum(), np.zeros(shards)) for _ in range(rows)]
        self.events: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self.number = self.asked = self.hedged = 0

    def go(self) -> Simulated:
        for row in range(len(self.rows)):
            self.gather(0.0, row)
        now = 0.0
        while self.events:
            now, _, happen, what = heapq.heappop(self.events)
            happen(now, what)
        latency = [np.concatenate(row.latency) for row in self.rows]
        counted = np.concatenate([of[int(WARM_UP * len(of)) :] for of in latency])
        batches = sum(row.batches for row in self.rows)
        busy = sum(row.busy for row in self.rows) / (now * len(self.rows))
        return Simulated(counted, busy, sum(map(len, latency)) / batches, self.hedged / max(1, self.asked))

    def at(self, time: float, happen: Callable[[float, Any], None], what: Any) -> None:
        self.number += 1  # events of one time happen in the order in which they were made
        heapq.heappush(self.events, (time, self.number, happen, what))

    def gather(self, now: float, number: int) -> None:
        """The front is free: take what waits, at once or after a while (serve.worker)."""
        row = self.rows[number]
        if row.head == len(row.arrivals):
            return
        begin = max(now, row.arrivals[row.head])
        if row.crowded:
            full = row.head + self.most - 1
            begin = max(begin, min(begin + self.wait_s, row.arrivals[full] if full < len(row.arrivals) else np.inf))
        self.at(begin, self.take, number)

    def take(self, now: float, number: int) -> None:
        row = self.rows[number]
        size = min(self.most, int(np.searchsorted(row.arrivals, now, side="right")) - row.head)
        row.crowded = size > 1
        self.at(now + self.service.before(size), self.scatter, _Batch(number, row.head, size, now))
        row.head += size

    def scatter(self, now: float, batch: _Batch) -> None:
        batch.done = self.ask(now, batch.row, np.arange(self.shards), batch.size)
        self.asked += self.shards
        if self.hedge_s is not None and (batch.done > now + self.hedge_s).any():
            self.at(now + self.hedge_s, self.hedge, batch)
        else:
            self.at(float(batch.done.max()) + self.service.after(batch.size), self.answer, batch)

    def hedge(self, now: float, batch: _Batch) -> None:
        late = np.flatnonzero(batch.done > now)
        self.hedged += len(late)
        again = self.ask(now, (batch.row + 1) % len(self.rows), late, batch.size)
        batch.done[late] = np.minimum(batch.done[late], again)
        self.at(max(now, float(batch.done.max())) + self.service.after(batch.size), self.answer, batch)

    def ask(self, now: float, row: int, shards: npt.NDArray[np.int64], size: int) -> Float64Array:
        """Queue a batch at shards of a row; return when each will have answered."""
        free = self.rows[row].free
        free[shards] = np.maximum(now, free[shards]) + self.service.scan(size) * self.service.noise(self.generator, len(shards))
        return free[shards].copy()

    def answer(self, now: float, batch: _Batch) -> None:
        row = self.rows[batch.row]
        row.latency.append(now - row.arrivals[batch.first : batch.first + batch.size])
        row.busy += now - batch.began
        row.batches += 1
        self.gather(now, batch.row)


__all__ = ["MOST", "WAIT_S", "Service", "Simulated", "simulate", "stragglers"]
