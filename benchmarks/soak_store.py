"""Damage every file of a bundle, and read and write it from many threads: nothing wrong may come of either.

python benchmarks/soak_store.py [--flips 1000] [--cuts 100] [--seconds 60]: flips single bits of every file of a bundle behind
an HNSW index, cuts each at random places, and opens the bundle each time, which must say which file it was. Then 8
threads search and 2 add, replace and delete labels, through compactions, and every answer is checked. Writes soak_store.json;
exits with 1 for anything wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kill_store import WIDTH, make
from machine import describe, write_result

from dexml import versions
from dexml.errors import InputError
from dexml.label_log import Change
from dexml.manifest import Row
from index.store import Store

READERS, WRITERS, K = 8, 2, 100


def main() -> None:
    """Run both, print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-result", action="store_true", help="print the result and write no file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        make(bundle)
        result = {"damage": damage(bundle, given.flips, given.cuts, given.seed)}
        result["threads"] = threads(bundle, given.seconds)
    if not given.no_result:
        write_result("soak_store", {"machine": describe(), **result})
    print(json.dumps(result))
    sys.exit(1 if result["damage"]["missed"] or result["threads"]["wrong"] else 0)


def damage(bundle: Path, flips: int, cuts: int, seed: int) -> dict[str, Any]:
    """Return how many changes of files were made, and which were missed."""
    with Store.open(bundle, writable=True) as store:
        store.write([Change("before", "text", unit(np.random.default_rng(1)))])
        store.compact(Row.model_validate({"name": "faiss", "factory": "HNSW16"}))
        for number in range(20):
            store.write([Change(f"after {number}", "text", unit(np.random.default_rng(number)))])
    draw, name = random.Random(seed), versions.current(bundle)[0].name
    files = [path for path in sorted(bundle.rglob("*")) if path.is_file() and name in str(path)] + [bundle / "CURRENT"]
    tried, missed = 0, []
    for path in files:
        path.chmod(0o644)
        whole = path.read_bytes()
        for number in range(flips + cuts):
            if number < flips:
                place = draw.randrange(8 * len(whole))
                changed = bytearray(whole)
                changed[place // 8] ^= 1 << place % 8
            else:
                changed = bytearray(whole[: draw.randrange(len(whole))])
            path.write_bytes(changed)
            tried += 1
            try:
                Store.open(bundle)
            except InputError as error:
                if path.name not in str(error):
                    missed.append(f"{path.name}: {error}")
            else:
                missed.append(f"{path.name}, {number}")
        path.write_bytes(whole)
        print(f"\r{tried:,} changes, {len(missed)} missed", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    Store.open(bundle)
    return {"files": len(files), "changes": tried, "missed": len(missed), "which": missed[:5]}


def threads(bundle: Path, seconds: float) -> dict[str, Any]:
    """Return how much was asked and written, and what was wrong."""
    until, wrong, counts = time.monotonic() + seconds, [], {"searches": 0, "writes": 0, "compactions": 0}
    store = Store.open(bundle, writable=True)

    def search(row: np.ndarray[Any, Any]) -> list[str]:
        live = store.live
        ids = live.index.search(torch.from_numpy(row[None]), K, 0.05).ids[0].tolist()
        return [live.labels.ids[number] for number in ids if number >= 0]

    def read(number: int) -> None:
        draw = np.random.default_rng(number)
        while time.monotonic() < until:
            found = search(unit(draw))
            counts["searches"] += 1
            if len(set(found)) != len(found) or any(name.startswith("gone") for name in found):
                wrong.append(f"a reader found {found}")

    def write(number: int) -> None:
        draw, turn = np.random.default_rng(100 + number), 0
        while time.monotonic() < until:
            turn += 1
            name, row = f"writer {number}, {turn % 50}", unit(draw) + 1e-3 * unit(draw)
            row /= np.linalg.norm(row)
            gone = f"gone {number}"
            store.write([Change(name, "text", row), Change(gone, "text", row), Change(gone)])
            found = search(row)
            if name not in found:
                wrong.append(f"{name} is not among the {K} labels nearest to its own row")
            store.write([Change(name)] if turn % 3 == 0 else [Change("never there")])
            if turn % 3 == 0 and name in search(row):
                wrong.append(f"{name} was found after it had been deleted")
            counts["writes"] += 2

    running = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
    running += [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for thread in running:
        thread.start()
    while time.monotonic() < until:
        store.compact()
        counts["compactions"] += 1
        time.sleep(min(2.0, max(0.0, until - time.monotonic())))
    for thread in running:
        thread.join()
    store.close()
    return {"seconds": seconds, **counts, "wrong": len(wrong), "which": wrong[:5]}


def unit(draw: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a random unit row (D)."""
    row = draw.standard_normal(WIDTH).astype(np.float32)
    return row / np.float32(np.linalg.norm(row))


if __name__ == "__main__":
    main()
