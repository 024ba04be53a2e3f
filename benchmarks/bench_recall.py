"""Answers with a memory of training queries against plain search, over as many rows in all; one process, called in turn.

python benchmarks/bench_recall.py [--rows 1000000] [--share 0.5] [--positives 5] [--batches 1 32 256] [--repeats 9]

Plain search scans `rows` labels. With the memory, `share` of the rows are training queries: labels and queries are scanned, and
the labels of the nearest queries rescored and lifted. "beside" is that memory on top of all `rows` labels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from machine import describe, write_result
from torch import Tensor

from dexml.kernels import choose
from dexml.manifest import MemoryFacts
from dexml.memory import Memory
from dexml.types import Int64Array, Positives, TopK
from index.exact import ExactIndex
from index.live import LiveIndex
from index.recall import Recall
from index.rerankers import RERANKERS

TEMPERATURE, K = 0.05, 10


def unit(rows: int, dimension: int, random: torch.Generator) -> Tensor:
    """Return random unit rows float32 (N, D)."""
    made = torch.empty(rows, dimension).normal_(generator=random)
    return made.div_(torch.linalg.vector_norm(made, dim=1, keepdim=True))


def searched(labels: Tensor) -> LiveIndex:
    """Return the labels behind the exact index, at full speed."""
    index = ExactIndex()
    index.build(labels)
    live = LiveIndex(index, labels, index.kernels)
    live.warm()
    return live


def main() -> None:
    """Measure, print ratios and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--positives", type=int, default=5)
    parser.add_argument("--neighbours", type=int, default=50)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    random, lots = torch.Generator().manual_seed(0), np.random.default_rng(0)
    rows = unit(given.rows, given.dimension, random)
    kept = round(given.share * given.rows)
    fewer = given.rows - kept
    numbers: Int64Array = np.sort(lots.integers(0, fewer // given.positives, (kept, given.positives)), axis=1)
    numbers = numbers * given.positives + np.arange(given.positives)  # unique within a row
    numbers = np.sort(numbers, axis=1).ravel()
    positives = Positives(np.arange(kept + 1, dtype=np.int64) * given.positives, numbers, fewer)
    facts = MemoryFacts(queries=kept, texts=False, weight=0.3, temperature=0.05, neighbours=given.neighbours)
    recall = Recall(Memory(rows[fewer:], positives), facts, TEMPERATURE)
    recall.warm()
    reranker = RERANKERS.build("softmax", {}, choose())
    whole, part = searched(rows), searched(rows[:fewer])

    def answer(queries: Tensor, live: LiveIndex, recall: Recall | None) -> TopK:
        found = live.search(queries, 200, TEMPERATURE)
        topk = reranker.rerank(queries, live.prepared, found, TEMPERATURE)
        return (topk if recall is None else recall.augment(queries, topk, live, TEMPERATURE)[0]).first(K)

    ways: dict[str, Callable[[Tensor], TopK]] = {
        "plain": lambda queries: answer(queries, whole, None),
        "memory": lambda queries: answer(queries, part, recall),
        "beside": lambda queries: answer(queries, whole, recall),
    }
    table = []
    for batch in given.batches:
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(given.repeats + 1):
            queries = unit(batch, given.dimension, random)
            for name, way in ways.items():
                start = time.perf_counter()
                way(queries)
                if turn:
                    times[name].append(1000 * (time.perf_counter() - start))
        base = statistics.median(times["plain"])
        for name, spent in times.items():
            median = statistics.median(spent)
            table.append({"batch": batch, "way": name, "ms": median, "of_plain": median / base})
            print(f"batch {batch:4}  {name:8} {median:9.2f} ms  {median / base:5.2f} of plain search")
    print(write_result("recall", {"machine": describe(), "setting": vars(given), "table": table}))


if __name__ == "__main__":
    main()
