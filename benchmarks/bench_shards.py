"""What Ray adds to a search: one process against shards in processes of their own, on this machine.

usage: python benchmarks/bench_shards.py [--labels 1000000] [--dimension 384] [--turns 200] [--shards 1 2 4]

One process scans all rows with all cores, so that on two cores each scans as many rows as one of two shards does: what two
shards take longer is the hop. Both answer in turns, in blocks of 20, for a single query with 200 candidates. Of the hop, what
is not inside the slowest shard is the way there and back, and the merge. Throughput is that of one front which asks again as
soon as it has an answer. Random unit rows. Needs the extra `ray`; writes shards.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_result
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dexml.model import DualEncoder
from dexml.types import LabelTable
from index.retriever import Retriever
from index.shards.base import Reply
from index.shards.index import ShardedIndex
from training.imports import import_bundle

BLOCK = 20  # searches of one kind before it is the other's turn
WARM = 20
K = 10


def main() -> None:
    """Make the bundle, measure each number of shards beside one process, print and write."""
    if "OMP_WAIT_POLICY" not in os.environ:  # as in a service: threads that spin would slow the processes beside theirs
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_WAIT_POLICY": "passive"})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--turns", type=int, default=200, help="searches of each kind")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        make(bundle, given.labels, given.dimension)
        for shards in given.shards:
            rows.append(measure(bundle, shards, given))
            print(json.dumps(rows[-1]), flush=True)
    table = Table(
        title=f"{given.labels:,} labels × {given.dimension} on {os.cpu_count()} cores: milliseconds, queries per second"
    )
    for column in ("", *(f"{row['shards']:.0f} shards" for row in rows)):
        table.add_column(column, justify="right" if column else "left")
    for name in rows[0]:
        table.add_row(name, *(f"{row[name]:,.3g}" for row in rows))
    Console().print(table)
    size = {"labels": given.labels, "dimension": given.dimension, "turns": given.turns}
    print(write_result("shards", {"machine": describe(), **size, "rows": rows}))


def make(bundle: Path, labels: int, dimension: int) -> None:
    """Publish random unit rows."""
    made = np.random.default_rng(0).standard_normal((labels, dimension), dtype=np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    names = tuple(f"label {number}" for number in range(labels))
    model = DualEncoder.make("bag", {}, "tokens", {"dimension": dimension, "start": "random"}, ["some words"])
    import_bundle(
        bundle, "shards", model, LabelTable(names, names), torch.from_numpy(made), "exact", 0.05, {"labels": "made up"}
    )


def measure(bundle: Path, shards: int, given: argparse.Namespace) -> dict[str, float]:
    """Return how one process and `shards` shards compare."""
    from index.shards.ray_engine import Layout, RayEngine

    cores = len(os.sched_getaffinity(0))
    engine = RayEngine(Layout(shards, cpus=max(1, cores // shards)))
    slowest = listened(engine)
    sharded = Retriever.open(bundle, spread=ShardedIndex.on(engine))
    whole = Retriever.open(bundle)
    for retriever in (whole, sharded):
        retriever.warm()
    queries = torch.nn.functional.normalize(torch.randn(64, given.dimension, generator=torch.Generator().manual_seed(1)))
    one, other = (retriever.search_embeddings(queries, K, normalize="all").topk for retriever in (whole, sharded))
    assert torch.equal(one.ids, other.ids), "the same ids"
    assert one.log_z is not None and other.log_z is not None
    took: dict[str, list[float]] = {"one process": [], "shards": []}
    inside: list[float] = []
    for turn in range(-WARM, given.turns, BLOCK):
        for name, retriever in (("one process", whole), ("shards", sharded)):
            for number in range(BLOCK):
                query = queries[number % 64][None]
                seconds = timed(lambda: retriever.search_embeddings(query, K))  # noqa: B023
                if turn >= 0:
                    took[name].append(seconds)
                    if name == "shards":
                        inside.append(slowest[-1])
    hop = np.array(took["shards"]) - np.array(inside)
    p50 = {name: 1000 * float(np.median(seconds)) for name, seconds in took.items()}
    result = {
        "shards": float(shards),
        "one process, p50": p50["one process"],
        "shards, p50": p50["shards"],
        "added, p50": p50["shards"] - p50["one process"],
        "shards, p95": 1000 * float(np.percentile(took["shards"], 95)),
        "in the slowest shard, p50": 1000 * float(np.median(inside)),
        "way and merge, p50": 1000 * float(np.median(hop)),
        "scores differ by": float((one.scores - other.scores).abs().max()),
        "log Z differs by": float((one.log_z - other.log_z).abs().max()),
        "empty call, p50": 1000 * float(np.median([timed(lambda: called(engine)) for _ in range(given.turns)])),
    }
    for batch in (1, 32):
        for name, retriever in (("one process", whole), ("shards", sharded)):
            result[f"{name}, queries/s, {batch} at once"] = rate(retriever, queries[:batch])
    engine.close()
    return result


def listened(engine: Any) -> list[float]:
    """Return a list that grows, from now on, by how long the slowest shard took at each question."""
    slowest: list[float] = []
    ask = engine.ask

    def heard(*question: Any) -> list[Reply | None]:
        replies: list[Reply | None] = ask(*question)
        slowest.append(max(reply.seconds for reply in replies if reply is not None))
        return replies

    engine.ask = heard
    return slowest


def called(engine: Any) -> None:
    """Call every shard for nothing."""
    import ray

    ray.get([copies[0].actor.where.remote() for copies in engine._copies])


def timed(act: Callable[[], object]) -> float:
    """Return how many seconds `act` takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def rate(retriever: Retriever, queries: Tensor, seconds: float = 3.0) -> float:
    """Return how many queries a second are answered, asked one batch after the other."""
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        retriever.search_embeddings(queries, K)
        count += len(queries)
    return count / passed


if __name__ == "__main__":
    main()
