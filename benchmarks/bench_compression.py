"""What a label costs, and what is lost: number types, FAISS's quantizers and the learned transform, before and after rescoring.

usage: python benchmarks/bench_compression.py BUNDLE DATA      a trained bundle, and the data set whose test split is answered
       python benchmarks/bench_compression.py --labels 1000000  made-up clustered rows, queries near them
R@100 is against the exact top 100 of the float32 rows. "Rescored" takes 200 candidates and rescores them from these, as a
bundle's retriever does. Queries per second are of the index alone, 32 at a time, two threads. Writes compression_NAME.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_result
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from data import open_format
from dexml.kernels import choose
from dexml.metrics import precision_at
from dexml.types import Positives
from index import INDEXES
from index.retriever import Retriever

CANDIDATES, DEPTH, BATCH = 200, 100, 32
WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("float32", "Flat", {}),
    ("float16", "SQfp16", {}),
    ("bfloat16", "SQbf16", {}),
    ("int8", "SQ8", {}),
    ("int8, learned transform", "SQ8", {"transform": "learned"}),
    ("OPQ, one byte a number", "OPQ", {}),
    ("int4", "SQ4", {}),
    ("int4, learned transform", "SQ4", {"transform": "learned"}),
    ("PQ, half a byte a number", "PQ", {}),
)


def main() -> None:
    """Measure each way, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--labels", type=int, default=1_000_000, help="made-up rows, where no bundle is given")
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--queries", type=int, default=128, help="made-up ones")
    parser.add_argument("--without", nargs="*", default=[], help="ways to leave out, by name")
    given = parser.parse_args()
    if (given.bundle is None) != (given.data is None):
        parser.error("a bundle goes with its data set")
    truth: Positives | None = None
    if given.bundle is None:
        name, (rows, queries) = f"clustered_{given.labels}", clustered(given.labels, given.dimension, given.queries)
    else:
        retriever, split = Retriever.open(given.bundle), open_format(given.data).read("test")
        name, truth = given.data.resolve().name, split.positives
        rows, (queries, _) = retriever.bundle.embeddings, retriever.model.embed_queries(split.texts)
    found = []
    for line in measured(rows, queries, truth, given.without):
        found.append(line)
        print(line, flush=True)
    show(name, found, truth is not None)
    setting = {"labels": len(rows), "dimension": rows.shape[1], "queries": len(queries), "candidates": CANDIDATES}
    print(write_result(f"compression_{name}", {"machine": describe(), **setting, "ways": found}))


def clustered(count: int, width: int, asked: int) -> tuple[Tensor, Tensor]:
    """Return unit rows (L, D) around a thousand centres, some dimensions larger than others, and queries (N, D) near rows."""
    draw = torch.Generator().manual_seed(0)
    size = torch.logspace(0, -1, width)[torch.randperm(width, generator=draw)]
    centres = torch.randn(1000, width, generator=draw)
    rows = torch.empty(count, width)
    for start in range(0, count, 65_536):
        block = rows[start : start + 65_536]
        near = centres[torch.randint(1000, (len(block),), generator=draw)]
        block[:] = normalize((near + 0.7 * torch.randn(block.shape, generator=draw)) * size, dim=1)
    picked = rows[torch.randint(count, (asked,), generator=draw)]
    noise = torch.randn(asked, width, generator=draw) * size
    return rows, normalize(picked + 0.5 * normalize(noise, dim=1), dim=1)


def measured(rows: Tensor, queries: Tensor, truth: Positives | None, without: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what each way costs and finds."""
    kernels = choose()
    prepared = kernels.prepare(rows, copy="none")
    exact = kernels.scan(queries, prepared, DEPTH, 0.05).ids.numpy()
    for name, factory, options in WAYS:
        if name in without:
            continue
        start = time.perf_counter()
        search, size = built(factory, options, rows)
        seconds = time.perf_counter() - start
        ids = search(queries)
        rescored = kernels.rescore(queries, prepared, ids, 0.05).ids.numpy()
        raw = ids[:, :DEPTH].numpy()
        line: dict[str, Any] = {"name": name, "factory": factory, "bytes": size, "build_s": round(seconds, 1)}
        line["recall"], line["recall_rescored"] = recall(raw, exact), recall(rescored[:, :DEPTH], exact)
        if truth is not None:
            line["P@1"], line["P@1_rescored"] = precision_at(raw, truth, 1), precision_at(rescored, truth, 1)
        line["queries_per_s"] = BATCH / min(timed(search, queries[:BATCH]) for _ in range(3))
        yield line


def built(factory: str, options: dict[str, Any], rows: Tensor) -> tuple[Any, float]:
    """Return a search for candidates (N, 200), and the bytes that a label takes."""
    import faiss

    width = rows.shape[1]
    if factory in ("OPQ", "PQ"):
        pieces = width if factory == "OPQ" else width // 2
        index: Any = faiss.IndexPQ(width, pieces, 8, faiss.METRIC_INNER_PRODUCT)
        if factory == "OPQ":
            turn = faiss.OPQMatrix(width, pieces)
            turn.niter = 4  # of FAISS's 50: each takes half a minute with so many pieces
            index = faiss.IndexPreTransform(turn, index)
        some = rows[
            torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:5000]
        ]  # with one byte a number, more take hours
        index.train(some.numpy())
        index.add(rows.numpy())
        return lambda asked: torch.from_numpy(index.search(asked.numpy(), CANDIDATES)[1]), float(pieces)
    own = INDEXES.build("faiss", {"factory": factory, **options})
    own.build(rows)
    size = {"Flat": 4.0, "SQfp16": 2.0, "SQbf16": 2.0, "SQ8": 1.0, "SQ4": 0.5}[factory]
    return lambda asked: own.search(asked, CANDIDATES, 0.05).ids, size * width


def recall(found: Any, exact: Any) -> float:
    """Return R@100 in percent against the exact answers."""
    shared = [len(np.intersect1d(one, other)) for one, other in zip(found, exact, strict=True)]
    return float(100 * np.mean(shared) / exact.shape[1])


def timed(search: Any, queries: Tensor) -> float:
    """Return the seconds of one search."""
    start = time.perf_counter()
    search(queries)
    return time.perf_counter() - start


def show(name: str, found: list[dict[str, Any]], with_truth: bool) -> None:
    """Print the table."""
    table = Table(title=f"{name}: percent; queries per second as a multiple of float32's")
    columns = ["", "bytes", "R@100", "rescored", *(["P@1", "rescored"] if with_truth else []), "speed", "built, s"]
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    first = found[0]["queries_per_s"]
    for line in found:
        figures = [line["recall"], line["recall_rescored"]]
        figures += [line["P@1"], line["P@1_rescored"]] if with_truth else []
        row = [line["name"], f"{line['bytes']:.0f}", *(f"{figure:.2f}" for figure in figures)]
        table.add_row(*row, f"{line['queries_per_s'] / first:.2f}×", f"{line['build_s']}")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
