"""How many shards and rows of machines an ask takes: a formula for one batch, and the queue simulated for the rest.

t(B) = encode + scatter + scan + merge, for a batch of B queries over S shards of n = ⌈L/S⌉ labels:
encode  = B · encode_ms
scatter = hop + round trip + S · message + S·B·4D bytes · (copy + wire)
scan    = n·D · scan_ns[B] + call_ms[B], at least n·D · bytes of the copy / memory bandwidth
merge   = S·B·(12k + 16) bytes · (copy + wire) + S·B·k · merge_ns
memory  = n · (7D + 300) bytes a machine: float32 rows with an int16 and an int8 copy, an id and a text
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from dexml.errors import InputError
from index.planning.machine import Machine, copy_bytes
from index.planning.queueing import MOST, Service, Simulated, simulate, stragglers

NUMBER_BYTES = 7  # float32, int16, int8
LABEL_BYTES = 300  # an id, a text of 50 characters, and their places in Python: measured on 300,000 labels
FILL = 0.8  # of a machine's memory
PAD = 32  # numbers: a row of a copy is whole vectors
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SLOW, FACTOR = 0.001, 4.0  # stragglers, where the plan is tried with some
HEADROOM = 1.2  # times the queries that were asked for, at which the p99 must still hold: larger batches take longer to scan,
# and a queue that just holds tips over at the first slow shard
QUERIES = 8_000  # simulated


@dataclass(frozen=True)
class Ask:
    """What is asked: L `labels` of width `dim`, `qps` queries a second, answered within `p99_ms`, the best `k` of each shard.

    `encode_ms` is the encoder's time a query, `network_gbit` a machine's line, `rtt_ms` the way to another machine and back;
    with `network_gbit` None all shards are processes of one machine, and share it.
    """

    labels: float
    dim: int
    qps: float
    p99_ms: float
    k: int = 100
    encode_ms: float = 0.2
    network_gbit: float | None = 10.0
    rtt_ms: float = 0.1

    @property
    def bytes(self) -> float:
        """The memory of all labels."""
        return self.labels * (NUMBER_BYTES * self.padded + LABEL_BYTES)

    @property
    def padded(self) -> int:
        """D as the copies have it."""
        return -(-self.dim // PAD) * PAD

    def scattered(self, shards: int, batch: float) -> float:
        """Return the bytes that leave a front for a batch."""
        return shards * batch * 4 * self.dim

    def gathered(self, shards: int, batch: float) -> float:
        """Return the bytes that come back: k ids and scores a query, its log-partition and its length."""
        return shards * batch * (12 * self.k + 16)


@dataclass(frozen=True)
class Batch:
    """The milliseconds of a batch, by part."""

    encode: float
    scatter: float
    scan: float
    merge: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.encode + self.scatter + self.scan + self.merge

    def __str__(self) -> str:
        """Return the parts in words."""
        return ", ".join(f"{name} {ms:.3g}" for name, ms in asdict(self).items()) + " ms"


@dataclass(frozen=True)
class Plan:
    """`rows` of `shards` machines each, and what they would do."""

    ask: Ask
    machine: Machine
    shards: int
    rows: int
    simulated: Simulated
    slowed: Simulated
    """The same with stragglers."""
    hedged: Simulated | None
    """And with late shards asked again in another row, where there is one."""

    def batch(self, size: float) -> Batch:
        """Return the time of a batch by part."""
        return batch_ms(self.ask, self.machine, self.shards, size)

    @property
    def least(self) -> int:
        """The shards that memory alone asks for."""
        return least_shards(self.ask, self.machine)

    def as_json(self) -> dict[str, Any]:
        """Return everything in numbers."""
        size = self.simulated.batch
        runs = {"": self.simulated, "stragglers": self.slowed, "stragglers, hedged": self.hedged}
        return {
            "machine": self.machine.model_dump(),
            "asked": asdict(self.ask),
            "shards": self.shards,
            "rows": self.rows,
            "machines": self.shards * self.rows,
            "shards_by_memory": self.least,
            "gib_a_machine": self.ask.bytes / self.shards / 2**30,
            "bandwidth_bound_ms": bandwidth_bound_ms(self.ask, self.machine, self.shards, 1),
            "lone_query_ms": asdict(self.batch(1)),
            "batch": size,
            "batch_ms": asdict(self.batch(size)),
            "busy": self.simulated.busy,
            "latency_ms": {
                name or "as measured": {"p50": 1e3 * run.percentile(50), "p99": 1e3 * run.percentile(99)}
                for name, run in runs.items()
                if run is not None
            },
            "merge_mb_a_batch": self.ask.gathered(self.shards, size) / 1e6,
            "merge_gbit_s_a_front": self.ask.gathered(self.shards, self.ask.qps / self.rows) * 8 / 1e9,
            "scatter_gbit_s_a_front": self.ask.scattered(self.shards, self.ask.qps / self.rows) * 8 / 1e9,
        }


def batch_ms(ask: Ask, machine: Machine, shards: int, size: float) -> Batch:
    """Return how long a batch of `size` queries takes over this many shards, by part: the formula of this module."""
    local = ask.network_gbit is None
    byte_ms = 1e-6 * machine.copy_ns + (0.0 if ask.network_gbit is None else 8e3 / (ask.network_gbit * 1e9))
    numbers = math.ceil(ask.labels / shards) * ask.padded
    return Batch(
        encode=size * ask.encode_ms,
        scatter=machine.hop_ms + ask.rtt_ms * (not local) + shards * machine.message_ms + ask.scattered(shards, size) * byte_ms,
        scan=machine.scan_ms(numbers, size, shards if local else 1),
        merge=ask.gathered(shards, size) * byte_ms + shards * size * ask.k * machine.merge_ns * 1e-6,
    )


def bandwidth_bound_ms(ask: Ask, machine: Machine, shards: int, size: int) -> float:
    """Return how long reading a shard's copy once takes at the machine's bandwidth: no scan is faster."""
    return ask.labels / shards * ask.padded * copy_bytes(size) / machine.read_gb_s / 1e6


def least_shards(ask: Ask, machine: Machine) -> int:
    """Return the fewest machines whose memory holds the labels."""
    return max(1, math.ceil(ask.bytes / (FILL * machine.memory_gib * 2**30)))


def service(ask: Ask, machine: Machine, shards: int) -> Service:
    """Return the times of a row as the simulation takes them, in seconds."""
    by_size = [batch_ms(ask, machine, shards, size) for size in range(MOST + 1)]
    return Service(
        lambda size: (by_size[size].encode + by_size[size].scatter) / 1e3,
        lambda size: by_size[size].scan / 1e3,
        lambda size: by_size[size].merge / 1e3,
    )


def plan(ask: Ask, machine: Machine) -> Plan:
    """Return the layout of the fewest machines whose simulated p99 is within the ask, at HEADROOM times its queries too.

    Raises InputError where no number of machines is: it says what a lone query takes where that is least, and of which part.
    """
    least, best = least_shards(ask, machine), fastest(ask, machine)
    bests = sorted({fastest(ask, machine, size) for size in (1, 8, MOST)})  # what hastens one query may hold up a full batch
    layout: tuple[int, int] | None = None
    for rows in ROWS:
        for most in bests:
            if layout is not None:
                most = min(most, (layout[0] * layout[1] - 1) // rows)
            if (fewest := _fewest(ask, machine, rows, least, most)) is not None:
                layout = fewest, rows
                break
    if layout is None:
        raise InputError(_impossible(ask, machine, least, best))
    shards, rows = layout
    times = service(ask, machine, shards)
    slow = replace(times, noise=stragglers(SLOW, FACTOR))
    rate, hedge = ask.qps / rows, None
    usual = simulate(rate, shards, times, queries=QUERIES)
    if rows > 1:
        late = 1.2 * times.scan(min(MOST, math.ceil(usual.batch)))
        hedge = simulate(rate, shards, slow, queries=QUERIES, rows=2, hedge_s=late)
    return Plan(ask, machine, shards, rows, usual, simulate(rate, shards, slow, queries=QUERIES), hedge)


def _fewest(ask: Ask, machine: Machine, rows: int, least: int, most: int) -> int | None:
    """Return the fewest shards a row, from `least` to `most`, with which the ask is met, or None."""
    if most < least or not _meets(ask, machine, most, rows):
        return None
    while least < most:
        middle = (least + most) // 2
        if _meets(ask, machine, middle, rows):
            most = middle
        else:
            least = middle + 1
    return most


def fastest(ask: Ask, machine: Machine, size: int = 1) -> int:
    """Return with how many shards a batch of `size` queries is fastest, of those that hold the labels: more cost the front
    more than they save.
    """
    best = shards = least_shards(ask, machine)
    while shards <= max(best, ask.labels) and shards <= 4 * best:
        if batch_ms(ask, machine, shards, size).total < batch_ms(ask, machine, best, size).total:
            best = shards
        shards = max(shards + 1, int(1.1 * shards))
    return best


def _meets(ask: Ask, machine: Machine, shards: int, rows: int) -> bool:
    rate = HEADROOM * ask.qps / rows
    if batch_ms(ask, machine, shards, 1).total > ask.p99_ms or batch_ms(ask, machine, shards, MOST).total * rate > 1e3 * MOST:
        return False  # a query by itself is too slow, or full batches one after the other are too few: nothing to simulate
    if ask.network_gbit is not None:
        most = max(ask.scattered(shards, rate), ask.gathered(shards, rate))
        if most * 8 > FILL * ask.network_gbit * 1e9:
            return False
    return simulate(rate, shards, service(ask, machine, shards), queries=QUERIES).percentile(99) <= ask.p99_ms / 1e3


def _impossible(ask: Ask, machine: Machine, least: int, best: int) -> str:
    lone = batch_ms(ask, machine, best, 1)
    where = f"{least:,} machines hold the labels, and with {best:,}, where a query by itself is fastest, it takes"
    if lone.total > ask.p99_ms:
        helps = {
            "encode": "a faster encoder (--encode-ms)",
            "scatter": "fewer and larger machines (--cores, --memory-gib), or a faster network (--network-gbit)",
            "scan": "more bandwidth and cores a machine (--cores, --read-gb-s)",
            "merge": "fewer answers (--k), or fewer and larger machines (--cores, --memory-gib)",
        }
        parts = sorted(asdict(lone).items(), key=lambda part: -part[1])
        said = "; or ".join(helps[name] for name, ms in parts if ms > lone.total / 4)
        return f"plan: impossible within {ask.p99_ms:g} ms: {where} {lone.total:.3g} ms ({lone}); what would help: {said}"
    full = batch_ms(ask, machine, best, MOST)
    return (
        f"plan: impossible within {ask.p99_ms:g} ms at {ask.qps:g} queries a second: {where} {lone.total:.3g} ms, but "
        f"batches of {MOST} take {full.total:.3g} ms ({full}), and {ROWS[-1]} rows of them are not enough"
    )


__all__ = ["Ask", "Batch", "Plan", "bandwidth_bound_ms", "batch_ms", "fastest", "least_shards", "plan", "service"]
