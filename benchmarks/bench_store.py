"""What living labels cost: opening and verifying a store, replaying its log, adding, and searching beside added and gone rows.

usage: python benchmarks/bench_store.py [--labels 1000000] [--dimension 384] [--records 100000]
Rows are random unit rows; every figure comes from a process of its own, files in the page cache. Writes store.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
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

from dexml import manifest as manifest_of
from dexml import versions
from dexml.label_log import Change, LabelLog
from dexml.model import DualEncoder
from dexml.types import LabelTable
from index.store import Store
from training.imports import import_bundle


def main() -> None:
    """Make the store, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--records", type=int, default=100_000, help="single writes in the log that is replayed")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(PARTS[given.part[0]](Path(given.part[1]), given)))
        return
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in PARTS:
            size = ["--labels", str(given.labels), "--dimension", str(given.dimension), "--records", str(given.records)]
            command = [sys.executable, __file__, *size, "--part", name, f"{folder}/bundle"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-3000:]}")
            measured |= json.loads(done.stdout.splitlines()[-1])
    table = Table(title=f"{given.labels:,} labels × {given.dimension}")
    table.add_column("what")
    table.add_column("measured", justify="right")
    for name, value in measured.items():
        table.add_row(name, f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")
    Console().print(table)
    print(write_result("store", {"machine": describe(), "labels": given.labels, "dimension": given.dimension, **measured}))


def rows_of(count: int, dimension: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return random unit rows."""
    rows = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def make(bundle: Path, given: argparse.Namespace) -> dict[str, float]:
    """Publish the labels, and write the log: single adds, replacements and deletions."""
    names = tuple(f"label {number}" for number in range(given.labels))
    model = DualEncoder.make("bag", {}, "tokens", {"dimension": given.dimension, "start": "random"}, ["some words"])
    start = time.perf_counter()
    rows = torch.from_numpy(rows_of(given.labels, given.dimension, 0))
    made = time.perf_counter()
    import_bundle(bundle, "bench-store", model, LabelTable(names, names), rows, "exact", 0.05, {"labels": "made up"})
    return {"publishing, s": time.perf_counter() - made, "making rows, s": made - start}


def open_plain(bundle: Path, given: argparse.Namespace) -> dict[str, float]:
    """Open the store, its files in the page cache, without and with what the index prepares."""
    folder, manifest = versions.current(bundle)
    verify = best(lambda: manifest_of.verify(folder, manifest))
    start = time.perf_counter()
    store = Store.open(bundle)
    whole = time.perf_counter() - start
    index = store.live.index
    start = time.perf_counter()
    index.warm()
    prepare = time.perf_counter() - start
    return {
        "opening, s": whole,
        "of it: verifying every byte, s": verify,
        "to full speed (scanning copies) from there, s": prepare,
    }


def search(bundle: Path, given: argparse.Namespace) -> dict[str, float]:
    """Add and delete, and search before and after: a query, and 32 at once, top 100 with the true normaliser."""
    query = torch.from_numpy(rows_of(32, given.dimension, 1))
    fresh = rows_of(10_000, given.dimension, 2)
    found: dict[str, float] = {}
    with Store.open(bundle, writable=True) as store:

        def ask(when: str) -> None:
            for batch in (1, 32):
                asked = query[:batch]
                took = best(lambda: store.live.index.search(asked, 100, 0.05), turns=9)  # noqa: B023
                found[f"search, {batch} at once, {when}, ms"] = 1000 * took

        store.warm()
        ask("untouched")
        start = time.perf_counter()
        for number in range(200):
            store.write([Change(f"new {number}", "text", fresh[number])])
        found["single writes acknowledged, per s"] = 200 / (time.perf_counter() - start)
        start = time.perf_counter()
        for first in range(0, 10_000, 1000):
            store.write([Change(f"new {first + place}", "text", fresh[first + place]) for place in range(1000)])
        found["writes of 1000 acknowledged, labels per s"] = 10_000 / (time.perf_counter() - start)
        ask("10,000 added")
        for first in range(0, 10_000, 1000):
            store.write([Change(f"label {first + place}") for place in range(1000)])
        ask("10,000 added, 10,000 gone")
        start = time.perf_counter()
        store.compact()
        found["compacting, s"] = time.perf_counter() - start
        ask("compacted")
    return found


def log(bundle: Path, given: argparse.Namespace) -> dict[str, float]:
    """Write the log to be replayed, one label a record: added, replaced, and one in five deleted."""
    fresh, random = rows_of(10_000, given.dimension, 3), np.random.default_rng(4)
    names = random.integers(given.records // 2, size=given.records)
    folder, manifest = versions.current(bundle)
    setattr(os, "fdatasync", lambda handle: None)  # noqa: B010 — it is the reading that is measured; flushes take minutes
    writer = LabelLog(versions.log_of(folder), manifest.dimension, manifest.sha256, writable=True)
    for number, name in enumerate(names.tolist()):
        writer.append([Change(f"new {name}", "text", None if random.random() < 0.2 else fresh[number % len(fresh)])])
    writer.close()
    return {"records in the log": float(given.records)}


def replay(bundle: Path, given: argparse.Namespace) -> dict[str, float]:
    """Read the log and make its changes, as opening the store does."""
    folder, manifest = versions.current(bundle)
    live = Store.open(bundle).live  # the log is in the page cache after this
    start = time.perf_counter()
    records = LabelLog(versions.log_of(folder), manifest.dimension, manifest.sha256).records
    live.change([change for record in records for change in record.changes])
    return {"replayed, records per s": len(records) / (time.perf_counter() - start)}


def best(task: Callable[[], object], turns: int = 3) -> float:
    """Return the seconds of the quickest of a few turns, after one to warm up."""
    task()
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return min(times)


PARTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, float]]] = {
    "make": make,
    "open": open_plain,
    "search": search,
    "log": log,
    "replay": replay,
}

if __name__ == "__main__":
    main()
