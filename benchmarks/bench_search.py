"""Exact top-k with the log-partition against its peers, each alone in a process of its own, called in turn, a few calls each.

python benchmarks/bench_search.py [--labels 131072] [--batches 1 32 256] [--repeats 9]    times and ratios
python benchmarks/bench_search.py --check                                                 the answers, against float64
python benchmarks/bench_search.py --draw                                                  docs/img/search.png from the results
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_result
from torch import Tensor
from torch.nn.functional import normalize

K, T, THREADS = 100, 0.05, 2
PAUSE = 0.05  # seconds before a turn: OpenMP's threads spin for a while on the cores that the other process needs next
CALLS = 5  # in a turn, each with queries of its own: the first finds sleeping threads and another process's caches
ENOUGH = 1000  # milliseconds after which a turn ends with fewer calls
FLAT = "faiss Flat"
WAYS = (
    "dexml",
    "dexml float32",
    FLAT,
    "faiss SQ8 (approximate)",
    "faiss IVF (approximate)",
    "faiss HNSW (approximate)",
    "usearch exact",
    "torch",
    "numpy",
    "read int8",
    "read int16",
    "read float32",
)
SLOW_TO_BUILD = ("faiss IVF (approximate)", "faiss HNSW (approximate)")  # left out above 200,000 labels unless asked for
CHECKED = 1000  # queries of each kind


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
        return faiss_searcher(way, labels)
    if way == "usearch exact":
        from usearch.index import MetricKind, search

        return lambda queries: search(labels.numpy(), queries.numpy(), K, MetricKind.IP, exact=True, threads=THREADS)
    if way == "numpy":
        return lambda queries: numpy_search(queries.numpy(), labels.numpy())
    if way == "torch":
        return lambda queries: torch.topk(queries @ labels.T, K)
    flat = labels.view(torch.int32).view(-1)
    flat = flat[: len(flat) // {"read int8": 4, "read int16": 2, "read float32": 1}[way]]
    return lambda _: torch.max(flat)  # the bandwidth floor: every byte once


def faiss_searcher(way: str, labels: Tensor) -> Callable[[Tensor], Any]:
    """Return a FAISS index's search; IVF visits 1/16 of its cells, HNSW keeps 128 candidates."""
    import faiss

    faiss.omp_set_num_threads(THREADS)
    width, inner = labels.shape[1], faiss.METRIC_INNER_PRODUCT
    index: Any = faiss.IndexFlatIP(width)
    if "SQ8" in way:
        index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, inner)
    elif "IVF" in way:
        cells = int(4 * len(labels) ** 0.5)
        index = faiss.IndexIVFFlat(index, width, cells, inner)
        index.nprobe = cells // 16
    elif "HNSW" in way:
        index = faiss.IndexHNSWFlat(width, 32, inner)
        index.hnsw.efSearch = 128
    index.train(labels[:60_000].numpy())
    index.add(labels.numpy())
    return lambda queries: index.search(queries.numpy(), K)


def numpy_search(queries: Any, labels: Any) -> Any:
    """Return what most people write."""
    scores = queries @ labels.T
    best = np.argpartition(-scores, K, axis=1)[:, :K]
    return np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1), 1)


def clustered(count: int, dimension: int) -> Tensor:
    """Return unit rows around 1,000 centres: every tenth a near duplicate of the one before, every hundredth an exact one."""
    made = rows(1000, dimension, 5)[torch.arange(count) % 1000] + 0.3 * rows(count, dimension, 6)
    made[10::10] = made[9:-1:10] + 1e-5 * rows(len(made[10::10]), dimension, 7)
    made[100::100] = made[99:-1:100]
    return normalize(made, dim=1)


def check(count: int, dimension: int) -> None:
    """Compare ids, order and log_z of random and clustered queries with float64 brute force; write and print what was seen."""
    from dexml.kernels.numba_cpu import NumbaKernels

    seen = {}
    for kind, labels in (("random", rows(count, dimension, 0)), ("clustered", clustered(count, dimension))):
        near = labels[torch.randperm(count, generator=torch.Generator().manual_seed(2))[:CHECKED]]
        queries = normalize(near + (0.5 if kind == "clustered" else 3.0) * rows(CHECKED, dimension, 1), dim=1)
        for copy in ("none", "int16", "int8"):
            kernels = NumbaKernels()
            prepared = kernels.prepare(labels, copy)
            wrong, worst = 0, 0.0
            step = 1 if copy == "int8" else 100  # an int8 copy serves a query or a few
            answers = [kernels.scan(queries[start : start + step], prepared, K, T) for start in range(0, CHECKED, step)]
            ids = torch.cat([answer.ids for answer in answers])
            log_z = torch.cat([answer.log_z for answer in answers if answer.log_z is not None]).double()
            for start in range(0, CHECKED, 100):
                scores = queries[start : start + 100].double() @ labels.double().T
                order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :K]
                found = ids[start : start + 100]
                # Labels closer to each other than the rounding of the float64 product have no order to agree on.
                apart = (scores.gather(1, found) - scores.gather(1, order)).abs() > 1e-14
                wrong += int((apart & (found != order)).any(1).sum())
                truth = torch.logsumexp(scores / T, 1)
                worst = max(worst, float((truth - log_z[start : start + 100]).abs().max()))
            facts = {"queries": CHECKED, "wrong_lists": wrong, "log_z_error": worst, "rescanned": kernels.rescanned}
            seen[f"{kind}, {copy}"] = facts
            print(f"{kind:10} copy {copy:6} {facts}", flush=True)
    result = {
        "machine": describe(),
        "setting": {"labels": count, "dimension": dimension, "k": K, "temperature": T},
        "table": seen,
    }
    print(write_result("search_check", result))


def draw() -> None:
    """Draw docs/img/search.png from the committed results."""
    from plots import ratio_bars

    groups: dict[str, dict[str, float]] = {}
    for count in (131_072, 1_000_000):
        path = Path(__file__).parent / "results" / f"search_{count}.json"
        if not path.exists():
            continue
        for line in json.loads(path.read_text(encoding="utf-8"))["table"]:
            if line["way"] not in (FLAT, "dexml float32") and not line["way"].startswith("read"):
                groups.setdefault(f"{count:,} labels, {line['batch']} at once", {})[line["way"]] = line["ratio"]
    title = "Top-100 of D = 384; dexml also returns the log-partition"
    ratio_bars(Path(__file__).parents[1] / "docs" / "img" / "search.png", title, groups, "FAISS IndexFlatIP")


def work(way: str, count: int, dimension: int) -> None:
    """Answer each line "B" on standard input with the milliseconds of CALLS calls in a row, or fewer slow ones."""
    torch.set_num_threads(THREADS)
    search = searcher(way, rows(count, dimension, 0))
    for turn, line in enumerate(sys.stdin):
        times = []
        for queries in rows(int(line) * CALLS, dimension, 1 + turn).chunk(CALLS):
            start = time.perf_counter()
            search(queries)
            times.append(1000 * (time.perf_counter() - start))
            if sum(times) > ENOUGH:
                break
        print(json.dumps(times), flush=True)


def ask(worker: subprocess.Popen[str], batch: int) -> list[float]:
    """Return the milliseconds that a worker takes for each call of its turn."""
    given, answer = worker.stdin, worker.stdout
    assert given is not None and answer is not None
    time.sleep(PAUSE)
    given.write(f"{batch}\n")
    given.flush()
    times: list[float] = json.loads(answer.readline())
    return times


def main() -> None:
    """Measure, print ratios and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=131_072)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 32, 256])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--ways", nargs="+", choices=WAYS)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--worker", choices=WAYS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker, given.labels, given.dimension)
        return
    if given.check or given.draw:
        check(given.labels, given.dimension) if given.check else draw()
        return
    ways = given.ways or [way for way in WAYS if given.labels <= 200_000 or way not in SLOW_TO_BUILD]
    table = []
    for batch in given.batches:
        times: dict[str, list[list[float]]] = {}
        # Two workers at a time, so that a million labels fit into memory: every way against FAISS, in turn.
        for way in (way for way in ways if way != FLAT):
            command = [sys.executable, __file__, "--labels", str(given.labels), "--dimension", str(given.dimension)]
            pair = {
                name: subprocess.Popen([*command, "--worker", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for name in (way, FLAT)
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
        median = {name: statistics.median(chain(*turns)) for name, turns in times.items()}
        first = {name: statistics.median(turn[0] for turn in turns) for name, turns in times.items()}
        for name, turns in times.items():
            row = {
                "batch": batch,
                "way": name,
                "ratio": median[FLAT] / median[name],
                "ms": median[name],
                "best_ms": min(chain(*turns)),
                "first_ratio": first[FLAT] / first[name],
                "first_ms": first[name],
            }
            table.append(row)
            print(f"{row['ratio']:7.2f}x  B={batch:<4} {name:24} {row['ms']:9.2f} ms  (best {row['best_ms']:.2f};", end=" ")
            print(f"first of a turn {row['first_ratio']:.2f}x, {row['first_ms']:.2f} ms)", flush=True)
    result = {"machine": describe(), "setting": vars(given), "table": table}
    print(write_result(f"search_{given.labels}", result))


if __name__ == "__main__":
    main()
