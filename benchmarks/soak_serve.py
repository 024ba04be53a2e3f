"""Hold a real service to its word: under load, past its limits, in a tight memory, while it changes, and as it ends.

usage: python benchmarks/soak_serve.py [--quick] [--only R1 R7 …] [--no-result]
Each row of the table is one of SERVING.md's reliability tests; --quick makes it seconds in place of minutes. Writes
soak_serve.json; exits with 1 unless every row passed. All of it takes about ten minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_serve
import numpy as np
import torch
from load import Load, Sample, post, summary
from machine import describe, write_result
from rich.console import Console
from rich.table import Table
from serving import Process, free_port, load, made_bundle, serving, texts
from soak_changes import swaps, writers
from soak_faults import Row, deadline, leavers, row, signals

TOLERANCE = 1e-5
TEMPERATURE = 0.05


def main() -> None:
    """Run the rows, print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--no-result", action="store_true", help="print the result and write no file")
    given = parser.parse_args()
    rows = []
    for name in given.only:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            made = ROWS[name](Path(scratch), given.quick)
        rows.append({**made, "seconds": round(time.monotonic() - began, 1)})
        print(json.dumps(rows[-1]), flush=True)
    table = Table(title="the service under strain")
    for head in ("row", "what", "figures", ""):
        table.add_column(head)
    for found in rows:
        figures = ", ".join(f"{name} {value}" for name, value in found["figures"].items())
        table.add_row(found["row"], found["what"], figures, "pass" if found["passed"] else "[bold]FAIL")
    Console().print(table)
    if not given.no_result:
        print(write_result("soak_serve", {"machine": describe(), "rows": rows}))
    sys.exit(0 if all(found["passed"] for found in rows) else 1)


def steady(scratch: Path, quick: bool) -> Row:
    """R1: 0.7 of the capacity, batches of several sizes, every answer against a float64 reference."""
    labels, width = (2_000, 32) if quick else (100_000, 384)
    rows = publish_rows(scratch / "bundle", labels, width)
    draw = np.random.default_rng(1)
    asked = [draw.standard_normal((size, width)) for size in (1, 1, 1, 2, 4, 8, 1, 16) * (2 if quick else 12)]
    expected = [reference(queries, rows) for queries in asked]
    wrong: list[str] = []

    def check(sample: Sample, body: bytes) -> None:
        if sample.status != 200:
            return
        scores, log_z = expected[sample.number % len(asked)]
        for number, result in enumerate(json.loads(body)["results"]):
            found = np.array([label["score"] for label in result["labels"]])
            own = np.array([scores[number, int(label["id"])] for label in result["labels"]])
            best = np.sort(scores[number])[::-1][: len(found)]
            chances = np.array([label["probability"] for label in result["labels"]])
            far = max(np.abs(found - own).max(), np.abs(found - best).max())
            if far > TOLERANCE or np.abs(chances - np.exp(own / TEMPERATURE - log_z[number])).max() > TOLERANCE:
                wrong.append(f"request {sample.number}, query {number}: {far:.2g} away")

    with serving([str(scratch / "bundle"), "--port", "0", "--no-admin"]) as service:
        fields = {"top_k": 10, "normalize": "all"}
        requests = [post(service.netloc, "/v1/search", {"embeddings": q.tolist(), **fields}) for q in asked]
        probing = Load(service.host, service.port, requests)
        asyncio.run(probing.closed(32, 1 if quick else 10))
        capacity = summary(probing.samples)["statuses"]["200"]["per_s"]
        before = service.rss()
        run = Load(service.host, service.port, requests, watch=check)
        asyncio.run(run.open(0.7 * capacity, 3 if quick else 60, 512))
        grown = service.rss() / before - 1
    found = summary(run.samples)["statuses"]
    good = found.get("200", {"p50": 0.0, "p99": float("inf"), "requests": 0})
    passed = set(found) == {"200"} and not wrong and good["p99"] <= 4 * good["p50"] and grown <= 0.01
    figures = {
        "capacity_per_s": capacity,
        "answers": good["requests"],
        "not_200": sorted(set(found) - {"200"}),
        "wrong": len(wrong),
    }
    figures |= {"p50_ms": good["p50"], "p99_ms": good["p99"], "memory": f"{grown:+.1%}", "which": wrong[:3]}
    return row("R1", f"0.7 of capacity, {labels:,} × {width} rows, checked", passed, **figures)


def reference(queries: Any, rows: Any) -> tuple[Any, Any]:
    """Return float64 scores (B, L) and log Σ e^{score/τ} (B)."""
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    scores = unit @ rows.astype(np.float64).T
    scaled = scores / TEMPERATURE
    top = scaled.max(axis=1, keepdims=True)
    return scores, (top + np.log(np.exp(scaled - top).sum(axis=1, keepdims=True)))[:, 0]


def publish_rows(bundle: Path, labels: int, width: int) -> Any:
    """Publish random unit rows as labels whose ids are their numbers; return them, float32 (L, D)."""
    from dexml.model import DualEncoder
    from dexml.types import LabelTable
    from training.imports import import_bundle

    rows = np.random.default_rng(0).standard_normal((labels, width)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = tuple(map(str, range(labels)))
    model = DualEncoder.make("bag", {}, "tokens", {"dimension": width, "start": "random"}, ["some words"])
    held = LabelTable(names, names)
    import_bundle(bundle, "soak", model, held, torch.from_numpy(rows), "exact", TEMPERATURE, {"labels": "made up"})
    return rows


def overload(scratch: Path, quick: bool) -> Row:
    """R2: three times the capacity, from four times as many clients as there are places."""
    bundle = made_bundle(2_000, 32, scratch) if quick else made_bundle(131_072, 384)
    (scratch / "queries").write_text("\n".join(texts(5_000, 2)), encoding="utf-8")
    asked = ("--queries", str(scratch / "queries"))
    with serving([str(bundle), "--port", "0", "--admin-port", str(admin := free_port())]) as service:
        runs = [
            load(service, *asked, "--clients", c, "--seconds", "2" if quick else "10", "--warm", "1") for c in ("32", "128")
        ]
        capacity = max(bench_serve.rate_of(run, "200") for run in runs)
        over = bench_serve.overload(service, asked, capacity, "4" if quick else "30", admin)
    good, refused = bench_serve.rate_of(over, "200"), over["statuses"].get("429", {"p99": float("inf"), "requests": 0})
    lives = {name: over[name]["statuses"].get("200", {"p99": float("inf")})["p99"] for name in ("livez", "livez_admin")}
    honest = all(value.isdigit() and int(value) >= 1 for value in over["retry_after"])
    others = sorted(set(over["statuses"]) - {"200", "429"})
    passed = good >= 0.9 * capacity and refused["p99"] <= 100 and honest and not others and max(lives.values()) <= 100
    passed = passed and over["most_inflight"] <= bench_serve.MAX_INFLIGHT
    figures = {"capacity_per_s": capacity, "goodput": f"{good / capacity:.0%}", "429s": refused["requests"]}
    figures |= {"429_p99_ms": refused["p99"], **{f"{name}_p99_ms": value for name, value in lives.items()}}
    return row("R2", "3 × capacity", passed, **figures, others=others, most_inflight=over["most_inflight"])


def memory(scratch: Path, quick: bool) -> Row:
    """R24: 1.2 times the address space that a normal load takes, and the largest legal request at every place."""
    places, labels, width = (8, 2_000, 32) if quick else (256, 100_000, 384)
    publish_rows(scratch / "bundle", labels, width)
    arguments = [str(scratch / "bundle"), "--port", "0", "--no-admin", "--max-inflight", str(places)]
    small = {"queries": ["some words"], "top_k": 10}
    with serving(arguments) as service:  # the nominal one: every thread has been at work
        asyncio.run(Load(service.host, service.port, [post(service.netloc, "/v1/search", small)]).closed(places, 3))
        nominal = peak(service)
    limit = int(1.2 * nominal)
    # 64 texts of 31,000 characters are just under 2,000,000 bytes; 64 embeddings of all digits are the other kind.
    largest = {"queries": [("words of a text " * 2000)[:31_000]] * 64, "top_k": 1000, "candidates": 2048, "normalize": "all"}
    with serving(arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))) as service:
        run = Load(service.host, service.port, [post(service.netloc, "/v1/search", {**largest, "timeout_ms": 30_000})])
        asyncio.run(run.closed(places, 1 if quick else 20))
        after = service.ask("POST", "/v1/search", small).status
        alive = len(service.workers) == 1
    answers = Counter(sample.status or "none" for sample in run.samples)
    passed = alive and after == 200 and set(answers) <= {200, 429, 503, 504}
    figures = {"nominal_gib": round(nominal / 2**30, 2), "limit_gib": round(limit / 2**30, 2), "answers": dict(answers)}
    return row("R24", f"{places} largest requests at once in 1.2 × the memory", passed, **figures, afterwards=after)


def peak(service: Process) -> int:
    """Return the largest address space that the worker has had, in bytes."""
    status = Path(f"/proc/{service.workers[0]}/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmPeak:"))


def flat(scratch: Path, quick: bool) -> Row:
    """R29: many requests, and then as many files, threads and bytes as before."""
    bundle = made_bundle(2_000, 32, scratch)
    with serving([str(bundle), "--port", "0", "--no-admin"]) as service:
        lines = [{"queries": [text], "top_k": 10} for text in texts(1_000, 3)]
        asks = [
            *(post(service.netloc, "/v1/search", line) for line in lines),
            post(service.netloc, "/v1/search", {"queries": []}),
        ]

        def part(seconds: float) -> tuple[int, dict[str, int]]:
            run = Load(service.host, service.port, asks)
            asyncio.run(run.closed(32, seconds))
            time.sleep(2.5)  # connections that say goodbye are given two seconds
            return len(run.samples), {"files": service.files(), "threads": service.threads(), "rss": service.rss()}

        asyncio.run(Load(service.host, service.port, asks).closed(300, 1 if quick else 5))  # every thread of the pool is made
        warm = part(2 if quick else 60)
        many = part(3 if quick else 240)
    before, after = warm[1], many[1]
    grown = after["rss"] / before["rss"] - 1
    same = after["files"] <= before["files"] + 4 and after["threads"] <= before["threads"] + 2
    figures = {"requests": warm[0] + many[0], "files": [before["files"], after["files"]]}
    figures |= {"threads": [before["threads"], after["threads"]], "memory": f"{grown:+.2%}"}
    return row("R29", "files, threads and memory of a long run", same and grown <= 0.01, **figures)


ROWS: dict[str, Callable[[Path, bool], Row]] = {
    "R1": steady,
    "R2": overload,
    "R4": lambda _, quick: deadline(quick),
    "R5": lambda _, quick: leavers(quick),
    "R6": lambda _, quick: signals(quick),
    "R7": swaps,
    "R14": writers,
    "R24": memory,
    "R29": flat,
}

if __name__ == "__main__":
    main()
