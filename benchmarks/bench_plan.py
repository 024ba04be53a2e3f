"""What `dexml plan` predicts of 1, 2 and 4 shards on this machine, beside what they take: processes that share its cores.

python benchmarks/bench_plan.py [--machine FILE] [--rounds 15] [--seconds 15] [--no-result]: measures the constants (or reads
FILE), then batches of 1, 8 and 64 queries over 2^27 numbers of labels in 1, 2 and 4 processes, in turn, and Poisson arrivals
over each for some seconds. Writes benchmarks/results/plan.json, exits with 1 unless every batch is within 25% of what was
predicted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_result

from dexml.errors import InputError
from dexml.types import TopK
from index.merge import merged
from index.planning.capacity import Ask, batch_ms, fastest, plan, service
from index.planning.machine import Machine, read
from index.planning.measure import LARGE, TAU, WIDTH, K, measure, unit_rows
from index.planning.queueing import MOST, WAIT_S, simulate

SHARDS, BATCHES = (1, 2, 4), (1, 8, 64)
ALLOWED = 0.25
LABELS = LARGE // WIDTH


class Row:
    """A front, which is this process, and its shards, a process each."""

    def __init__(self, shards: int) -> None:
        context = multiprocessing.get_context("spawn")
        threads = max(1, len(os.sched_getaffinity(0)) // shards)
        self.pipes, self.processes = [], []
        for number in range(shards):
            here, there = context.Pipe()
            count = LABELS * (number + 1) // shards - LABELS * number // shards
            process = context.Process(target=serve, args=(there, count, threads, LABELS * number // shards), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()

    def ask(self, queries: np.ndarray[Any, Any]) -> TopK:
        """Scatter, gather and merge."""
        for pipe in self.pipes:
            pipe.send(queries)
        return merged([TopK(*map(torch.from_numpy, pipe.recv())) for pipe in self.pipes])

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join()


def serve(pipe: Connection, count: int, threads: int, first: int) -> None:
    """Be a shard: random labels, numbered from `first` on."""
    torch.set_num_threads(threads)
    import numba

    numba.set_num_threads(threads)
    from dexml.kernels import choose

    torch.manual_seed(first)
    kernels = choose()
    prepared = kernels.prepare(unit_rows(count, WIDTH))
    for batch in BATCHES:  # what compiles on first use, compiles now
        kernels.scan(unit_rows(batch, WIDTH), prepared, K, TAU)
    pipe.send("ready")
    while (queries := pipe.recv()) is not None:
        found = kernels.scan(torch.from_numpy(queries), prepared, K, TAU)
        assert found.log_z is not None
        pipe.send((found.ids.numpy() + first, found.scores.numpy(), found.log_z.numpy()))


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", type=Path, help="constants that `dexml plan --measure` left; default: measured now")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=15.0, help="of Poisson arrivals over each number of shards")
    parser.add_argument("--no-result", action="store_true", help="print the result and write no file")
    parser.add_argument("--table", action="store_true", help="print the table of docs/plan.md instead, and measure nothing")
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in a service, whose shards would spin on each other's cores
    if given.table:
        table(read(given.machine))
        return
    machine = read(given.machine) if given.machine else measure(lambda what: print(what, file=sys.stderr))
    ask = Ask(LABELS, WIDTH, qps=1, p99_ms=1, k=K, encode_ms=0, network_gbit=None)
    rows = {shards: Row(shards) for shards in SHARDS}
    batches = compare(ask, machine, rows, given.rounds)
    loads = [under_load(ask, machine, row, shards, given.seconds) for shards, row in rows.items()] if given.seconds else []
    for row in rows.values():
        row.close()
    worst = max(abs(entry["predicted_ms"] / entry["measured_ms"] - 1) for entry in batches)
    result = {"labels": LABELS, "dimension": WIDTH, "worst": worst, "batches": batches, "loads": loads}
    result["constants"] = machine.model_dump()
    if not given.no_result:
        write_result("plan", {"machine": describe(), **result})
    print(json.dumps({"batches": batches, "loads": loads, "worst": worst}, indent=1))
    sys.exit(0 if worst <= ALLOWED else 1)


def compare(ask: Ask, machine: Machine, rows: dict[int, Row], rounds: int) -> list[dict[str, Any]]:
    """Return the median time of every batch size over every number of shards, with its prediction."""
    asked = {batch: unit_rows(batch, WIDTH).numpy() for batch in BATCHES}
    times: dict[tuple[int, int], list[float]] = {(shards, batch): [] for shards in rows for batch in BATCHES}
    for turn in range(rounds + 1):
        for shards, row in rows.items():
            for batch, queries in asked.items():
                start = time.perf_counter()
                row.ask(queries)
                if turn:  # the first wakes everybody up
                    times[shards, batch].append(1e3 * (time.perf_counter() - start))
    return [
        {
            "shards": shards,
            "batch": batch,
            "measured_ms": round(statistics.median(taken), 2),
            "predicted_ms": round(predicted := batch_ms(ask, machine, shards, batch).total, 2),
            "ratio": round(predicted / statistics.median(taken), 3),
        }
        for (shards, batch), taken in times.items()
    ]


def under_load(ask: Ask, machine: Machine, row: Row, shards: int, seconds: float) -> dict[str, Any]:
    """Return p50 and p99 of Poisson arrivals, as many as batches of eight keep up with, beside the simulated ones."""
    rate = 8e3 / batch_ms(ask, machine, shards, 8).total
    arrivals = np.random.default_rng(shards).exponential(1 / rate, int(rate * seconds)).cumsum()
    queries = unit_rows(MOST, WIDTH).numpy()
    latency, head, crowded = [], 0, False
    began = time.perf_counter()
    while head < len(arrivals):  # as serve.worker gathers, and index.planning.queueing simulates it
        begin = max(time.perf_counter() - began, arrivals[head])
        if crowded:
            full = head + MOST - 1
            begin = max(begin, min(begin + WAIT_S, arrivals[full] if full < len(arrivals) else np.inf))
        time.sleep(max(0.0, begin - (time.perf_counter() - began)))
        now = time.perf_counter() - began
        size = min(MOST, int(np.searchsorted(arrivals, now, side="right")) - head)
        row.ask(queries[:size])
        latency.append(time.perf_counter() - began - arrivals[head : head + size])
        head, crowded = head + size, size > 1
    found = 1e3 * np.concatenate(latency)
    expected = simulate(rate, shards, service(ask, machine, shards), queries=40_000)
    return {
        "shards": shards,
        "rate": round(rate, 1),
        "queries": len(found),
        **{f"p{p}_ms": round(float(np.percentile(found, p)), 1) for p in (50, 99)},
        **{f"simulated_p{p}_ms": round(1e3 * expected.percentile(p), 1) for p in (50, 99)},
    }


def table(machine: Machine) -> None:
    """Print plans for 10^7 to 10^9 labels, on the machine of the constants and on an imagined one."""
    print(
        "| machine | L | p99 within | shards × rows | GiB a machine | a lone query | p50, p99 simulated | to merge, a batch |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    large = machine.scaled(64, 512, 300)
    for name, used, gbit in (("measured", machine, 10.0), ("imagined", large, 100.0)):
        for labels in (1e7, 1e8, 1e9):
            for p99 in (500.0, 100.0):
                ask = Ask(labels, 768, 100, p99, network_gbit=gbit)
                asked = f"| {name} | 10^{round(np.log10(labels))} | {p99:.0f} ms"
                try:
                    made = plan(ask, used)
                except InputError:
                    lone = batch_ms(ask, used, fastest(ask, used), 1)
                    print(f"{asked} | impossible | | {lone.total:.3g} ms, at least | | |")
                    continue
                found, size = made.simulated, made.simulated.batch
                print(
                    f"{asked} | {made.shards:,} × {made.rows} | {ask.bytes / made.shards / 2**30:.2g} | "
                    f"{made.batch(1).total:.3g} ms | {1e3 * found.percentile(50):.3g}, {1e3 * found.percentile(99):.3g} ms | "
                    f"{ask.gathered(made.shards, size) / 1e6:.2g} MB |"
                )


if __name__ == "__main__":
    main()
