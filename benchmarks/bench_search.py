"""Exact top-k with the log-partition against its peers, each alone in a process of its own, called in turn.

python benchmarks/bench_search.py [--labels 131072] [--batches 1 32 256] [--repeats 9]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import describe, write_result
from torch import Tensor
from torch.nn.functional import normalize

K, T, THREADS = 100, 0.05, 2
WAYS = ("dexml", "dexml float32", "faiss Flat", "faiss SQ8 (approximate)", "torch", "read int16", "read float32")


def rows(count: int, dimension: int, seed: int) -> Tensor:
    """Return random unit rows."""
    return normalize(torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)), dim=1)


def searcher(way: str, labels: Tensor) -> Callable[[Tensor], Any]:
    """Return what a way does with a batch of queries."""
    if way.startswith("dexml"):
        from dexml.kernels import choose

        kernels = choose(backend="numba")
        prepared = kernels.prepare(labels, copy="none" if way.endswith("float32") else "auto")
        return lambda queries: kernels.scan(queries, prepared, K, T)
    if way.startswith("faiss"):
        import faiss

        faiss.omp_set_num_threads(THREADS)
        index: Any = faiss.IndexFlatIP(labels.shape[1])
        if "SQ8" in way:
            quantizer = faiss.ScalarQuantizer.QT_8bit
            index = faiss.IndexScalarQuantizer(labels.shape[1], quantizer, faiss.METRIC_INNER_PRODUCT)
            index.train(labels[:50_000].numpy())
        index.add(labels.numpy())
        return lambda queries: index.search(queries.numpy(), K)
    if way == "torch":
        return lambda queries: torch.topk(queries @ labels.T, K)
    flat = labels.view(torch.int32).view(-1)
    flat = flat[: len(flat) // 2] if way == "read int16" else flat
    return lambda _: torch.max(flat)  # the bandwidth floor: every byte once


def work(way: str, count: int, dimension: int) -> None:
    """Answer each line "B" on standard input with the milliseconds of one call."""
    torch.set_num_threads(THREADS)
    search = searcher(way, rows(count, dimension, 0))
    for line in sys.stdin:
        queries = rows(int(line), dimension, 1)
        start = time.perf_counter()
        search(queries)
        print(1000 * (time.perf_counter() - start), flush=True)


def ask(worker: subprocess.Popen[str], batch: int) -> float:
    """Return the milliseconds a worker takes for one call."""
    given, answer = worker.stdin, worker.stdout
    assert given is not None and answer is not None
    given.write(f"{batch}\n")
    given.flush()
    return float(answer.readline())


def main() -> None:
    """Measure, print ratios and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=131_072)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 32, 256])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--worker", choices=WAYS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker, given.labels, given.dimension)
        return
    table = []
    for batch in given.batches:
        times: dict[str, list[float]] = {}
        # Two workers at a time, so that a million labels fit into memory: every way against FAISS, in turn.
        for way in (way for way in given.ways if way != "faiss Flat"):
            command = [sys.executable, __file__, "--labels", str(given.labels), "--dimension", str(given.dimension)]
            pair = {
                name: subprocess.Popen([*command, "--worker", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for name in (way, "faiss Flat")
            }
            for worker in pair.values():
                ask(worker, batch)
            for _ in range(given.repeats):
                for name, worker in pair.items():
                    times.setdefault(name, []).append(ask(worker, batch))
            for worker in pair.values():
                assert worker.stdin is not None
                worker.stdin.close()
                worker.wait()
        base = statistics.median(times["faiss Flat"])
        for name, found in times.items():
            median = statistics.median(found)
            table.append({"batch": batch, "way": name, "ratio": base / median, "ms": median, "best_ms": min(found)})
            print(f"{base / median:7.2f}x  B={batch:<4} {name:24} {median:9.2f} ms  (best {min(found):.2f})", flush=True)
    result = {"machine": describe(), "setting": vars(given), "table": table}
    print(write_result(f"search_{given.labels}", result))


if __name__ == "__main__":
    main()
