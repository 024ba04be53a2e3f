"""Versions swapped and labels written under load: rows R7 and R14 of `soak_serve.py`."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from kill_store import LABELS, WIDTH, make, unit
from load import Load, Sample, post
from serving import Process, serving
from soak_faults import Row, row

from dexml.client import Client, DexmlError, NewLabel
from dexml.label_log import Change
from index.store import Store

READERS, WRITERS = 8, 2


def two_versions(bundle: Path) -> tuple[str, str]:
    """Publish version A, whose texts begin with `label`, and B after it, whose texts begin with `other`; return their names."""
    make(bundle)
    with Store.open(bundle, writable=True) as store:
        first = store.bundle.root.name
        rows = [unit(np.random.default_rng(10**6 + number)) for number in range(LABELS)]
        store.write([Change(f"label {n}", f"other {n}", vector) for n, vector in enumerate(rows)])
        store.compact()
        return first, store.bundle.root.name


def swaps(scratch: Path, quick: bool) -> Row:
    """R7: two versions take turns under load: nothing fails, and every answer is wholly of the version that it names."""
    first, second = two_versions(scratch / "swapped")
    with serving([str(scratch / "swapped"), "--port", "0", "--no-admin", "--writable"]) as service:
        names = {second: "other"}
        turns, warm = (4, 2) if quick else (70, 20)  # memory is compared once the allocator's pools are warm
        levels: list[int] = []
        seen: list[tuple[str, frozenset[str]]] = []

        def watch(sample: Sample, body: bytes) -> None:
            if sample.status == 200:
                answer = json.loads(body)
                labels = [label for result in answer["results"] for label in result["labels"]]
                seen.append((answer["index_version"], frozenset(label["text"].split()[0] for label in labels)))

        draw = np.random.default_rng(0)
        asks = [post(service.netloc, "/v1/search", {"embeddings": [unit(draw).tolist()] * 4, "top_k": 50}) for _ in range(200)]
        steady = Load(service.host, service.port, asks)
        asyncio.run(steady.closed(8, 1 if quick else 5))
        load = Load(service.host, service.port, asks, watch=watch)
        over, failed = threading.Event(), []

        def swap() -> None:
            a, b = first, second
            with Client(service.url) as client:
                for turn in range(turns):
                    # Going back publishes anew under the next name, so the next turn goes back to the one before that.
                    wanted, word = (a, "label") if turn % 2 == 0 else (b, "other")
                    try:
                        made = client.activate(wanted)
                    except DexmlError as error:
                        failed.append(str(error))
                        break
                    names[made] = word
                    if turn == warm:
                        levels.append(service.rss())
                    a, b = (made, b) if turn % 2 == 0 else (a, made)
            over.set()

        swapping = threading.Thread(target=swap)
        swapping.start()
        asyncio.run(load.closed(8, 600, until=over.is_set))
        swapping.join()
        grown = service.rss() / levels[0] - 1 if levels else math.inf
    mixed = [(name, words) for name, words in seen if words != {names.get(name.partition("+")[0])}]
    bad = Counter(sample.status for sample in load.samples if sample.status != 200)
    quantile = _p99(load.samples) / _p99(steady.samples)
    passed = not failed and not mixed and not bad and len({name for name, _ in seen}) >= turns
    passed = passed and abs(grown) <= 0.02 and quantile <= 3
    figures = {"swaps": len(names) - 1, "answers": len(seen), "failed": dict(bad), "mixed": len(mixed)}
    figures |= {"p99_over_steady": round(quantile, 1), "memory": f"{grown:+.1%}", "refused": failed[:1]}
    return row("R7", f"{turns} swaps between two versions under load", passed, **figures)


def writers(scratch: Path, quick: bool) -> Row:
    """R14: readers and writers over HTTP: nothing deleted is found, everything added is, at once, and nothing twice."""
    make(scratch / "written")
    wrong: list[str] = []
    counts = Counter[str]()
    with serving([str(scratch / "written"), "--port", "0", "--no-admin", "--writable"]) as service:
        until = time.monotonic() + (2 if quick else 60)
        tasks = [(read, number) for number in range(READERS)] + [(write, number) for number in range(WRITERS)]
        running = [threading.Thread(target=task, args=(service, number, until, wrong, counts)) for task, number in tasks]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    passed = not wrong and counts["searches"] > 0 and counts["writes"] > 0
    return row("R14", f"{READERS} readers and {WRITERS} writers over HTTP", passed, **counts, wrong=len(wrong), which=wrong[:3])


def read(service: Process, number: int, until: float, wrong: list[str], counts: Counter[str]) -> None:
    """Search at random; no label may come twice."""
    draw = np.random.default_rng(number)
    with Client(service.url) as client:
        while time.monotonic() < until:
            found = _found(client, unit(draw), wrong)
            counts["searches"] += 1
            if len(set(found)) != len(found):
                wrong.append(f"a reader found {found}")


def write(service: Process, number: int, until: float, wrong: list[str], counts: Counter[str]) -> None:
    """Add, replace and delete labels; look for each right after."""
    draw, turn = np.random.default_rng(100 + number), 0
    with Client(service.url) as client:
        while time.monotonic() < until:
            turn += 1
            name, vector = f"writer {number}, {turn % 50}", draw.standard_normal(WIDTH)
            try:
                client.upsert([NewLabel(name, "text", vector)])
                if name not in _found(client, vector, wrong):
                    wrong.append(f"{name} is not among the labels nearest to its own row")
                if turn % 3 == 0:
                    client.delete([name])
                    if name in _found(client, vector, wrong):
                        wrong.append(f"{name} was found after it had been deleted")
            except DexmlError as error:
                wrong.append(str(error))
            counts["writes"] += 2


def _found(client: Client, vector: Any, wrong: list[str]) -> list[str]:
    try:
        return [label.id for label in client.search(embeddings=vector[None], top_k=50)[0].labels]
    except DexmlError as error:
        wrong.append(str(error))
        return []


def _p99(samples: list[Sample]) -> float:
    return float(np.quantile([sample.seconds for sample in samples], 0.99))
