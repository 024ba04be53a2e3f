"""The constants of this machine, measured in a minute or two with the kernels that serve."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from multiprocessing.connection import Connection

import torch

from dexml.kernels import choose
from dexml.kernels.calibration import crossovers
from dexml.types import TopK
from index.merge import merged
from index.planning.machine import Machine

WIDTH, K = 384, 100
SMALL, LARGE = 1 << 25, 1 << 27  # numbers: both too many for a cache, and enough for every copy
BATCHES = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 11  # of which the lower quartile counts: near the usual time, even where others use the machine
TAU = 0.05
LEAST_MS = 1e-3  # what is too little to be measured


def measure(report: Callable[[str], None]) -> Machine:
    """Return this machine's constants; takes 1 GB of memory. `report` hears what is being measured."""
    cores = len(os.sched_getaffinity(0))
    spawn = multiprocessing.get_context("spawn")  # threads are chosen once a process
    tables = []
    for threads in (cores, 1):
        report(f"scanning with {threads} thread{'s' * (threads > 1)}")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            tables.append(pool.submit(scans, threads).result())
    (all_ns, all_ms), (one_ns, one_ms) = tables
    report("reading memory")
    read = max(reading_gb_s(), 1 / all_ns[0])
    report("asking another process")
    hop, message, copy = asking(spawn)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    alone = Machine(
        about=f"{_processor()}, {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, numba {metadata.version('numba')}",
        cores=cores,
        memory_gib=round(memory, 1),
        read_gb_s=read,
        batches=BATCHES,
        all_scan_ns=all_ns,
        all_call_ms=all_ms,
        one_scan_ns=one_ns,
        one_call_ms=one_ms,
        hop_ms=hop,
        message_ms=message,
        copy_ns=copy,
        merge_ns=merge_ns(),
        crowd_ms=LEAST_MS,
    )
    report("scanning in more processes than cores")
    return alone.model_copy(update={"crowd_ms": crowd_ms(spawn, alone)})


def scans(threads: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return nanoseconds a number, and milliseconds a call, of a scan by batch size, from two sizes of label matrix."""
    torch.set_num_threads(threads)
    import numba

    numba.set_num_threads(threads)
    crossovers()  # measured now, where they are not known, and not within what is timed
    kernels = choose()
    both = [kernels.prepare(unit_rows(numbers // WIDTH, WIDTH)) for numbers in (SMALL, LARGE)]
    asked = [unit_rows(batch, WIDTH) for batch in BATCHES]
    times = usual_times([partial(kernels.scan, q, p, K, TAU) for p in both for q in asked])
    few, many = times[: len(BATCHES)], times[len(BATCHES) :]
    per_number = [max(1e-6, (large - small) / (LARGE - SMALL) * 1e9) for small, large in zip(few, many, strict=True)]
    calls = [max(1e-3, 1e3 * small - SMALL * ns * 1e-6) for small, ns in zip(few, per_number, strict=True)]
    return tuple(per_number), tuple(calls)


def unit_rows(count: int, width: int) -> torch.Tensor:
    """Return random unit rows float32 (count, width)."""
    rows = torch.randn(count, width)
    return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))


def usual_times(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return the lower quartile of the seconds of each call, the first not counted.

    They are made in turn, so that a drift of the machine hits all alike.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS + 1):
        for call, took in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            took.append(time.perf_counter() - start)
    return [sorted(took[1:])[REPEATS // 4] for took in times]


def usual_time(call: Callable[[], object]) -> float:
    """Return the same of one."""
    return usual_times([call])[0]


def reading_gb_s() -> float:
    """Return how fast all cores read 512 MB and do nothing but add."""
    numbers = torch.ones(1 << 26, dtype=torch.int64)
    return numbers.nbytes / usual_time(numbers.sum) / 1e9


def asking(context: multiprocessing.context.SpawnContext) -> tuple[float, float, float]:
    """Return milliseconds of a small question to a process and back, and of a further one; nanoseconds of each byte more."""
    here, there = context.Pipe()
    process = context.Process(target=_echo, args=(there,), daemon=True)
    process.start()

    def ask(payload: bytes, times: int = 1) -> Callable[[], object]:
        def call() -> None:
            for _ in range(times):
                here.send(payload)
            for _ in range(times):
                here.recv()

        return call

    size, many = 1 << 22, 16
    small, more, large = usual_times([ask(b"0" * 100), ask(b"0" * 100, many), ask(b"0" * size)])
    here.send(None)
    process.join()
    return (
        1e3 * small,
        max(1e-4, 1e3 * (more - small) / (many - 1)),
        max(1e-4, (large - small) / (2 * size) * 1e9),
    )


def crowd_ms(context: multiprocessing.context.SpawnContext, alone: Machine) -> float:
    """Return the milliseconds that two shards a core take longer for one query than their work on `alone` does."""
    shards = 2 * alone.cores
    numbers = LARGE // shards // WIDTH * WIDTH
    pipes = []
    for _ in range(shards):
        here, there = context.Pipe()
        context.Process(target=_shard, args=(there, numbers // WIDTH), daemon=True).start()
        pipes.append(here)
    for pipe in pipes:
        pipe.recv()

    def ask() -> None:
        for pipe in pipes:
            pipe.send(True)
        for pipe in pipes:
            pipe.recv()

    taken = 1e3 * usual_time(ask)
    for pipe in pipes:
        pipe.send(None)
    return max(LEAST_MS, taken - alone.scan_ms(numbers, 1, shards) - alone.hop_ms - shards * alone.message_ms)


def _shard(pipe: Connection, rows: int) -> None:
    torch.set_num_threads(1)
    import numba

    numba.set_num_threads(1)
    kernels = choose()
    prepared, query = kernels.prepare(unit_rows(rows, WIDTH)), unit_rows(1, WIDTH)
    kernels.scan(query, prepared, K, TAU)
    pipe.send(True)
    while pipe.recv():
        kernels.scan(query, prepared, K, TAU)
        pipe.send(True)


def _echo(pipe: Connection) -> None:
    while (asked := pipe.recv()) is not None:
        pipe.send(asked)


def merge_ns() -> float:
    """Return nanoseconds an answer, of eight shards' answers to 32 queries."""
    parts, batch = 8, 32
    scores = [torch.rand(batch, K).sort(dim=1, descending=True).values for _ in range(parts)]
    answers = [TopK(torch.arange(K).repeat(batch, 1) + part * K, of, torch.zeros(batch)) for part, of in enumerate(scores)]
    return usual_time(lambda: merged(answers)) / (parts * batch * K) * 1e9


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), os.uname().machine)
