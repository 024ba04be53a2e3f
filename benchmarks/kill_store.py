"""Kill a process with SIGKILL while it adds labels and publishes versions; open the bundle each time and compare every label.

python benchmarks/kill_store.py [--publishing 200] [--adding 100] [--seed 0]: writes benchmarks/results/kill_store.json, exits
with 1 unless after every kill the bundle opened with all checksums verified, every acknowledged write was there whole, and at
most the one write that was under way besides. Processes are real, forked from one that has imported all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_result

from dexml.label_log import Change
from index.store import Store

WIDTH, LABELS, NAMES = 32, 300, 400
IMPORTED = ("dexml.bundle", "dexml.model", "dexml.encoders.bag", "dexml.towers.tokens", "index.exact", "numba")
State = dict[str, tuple[str, bytes]]


def main() -> None:
    """Run the experiment and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publishing", type=int, default=200, help="kills while versions are published, and labels added too")
    parser.add_argument("--adding", type=int, default=100, help="kills while labels are added, replaced and deleted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-result", action="store_true", help="print the result and write no file")
    given = parser.parse_args()
    for name in IMPORTED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        assert in_process(lambda: make(bundle)) == 0
        result = experiment(bundle, given.publishing, given.adding, given.seed)
    if not given.no_result:
        write_result("kill_store", {"machine": describe(), **result})
    print(json.dumps(result))
    sys.exit(0 if result["wrong"] == 0 else 1)


def experiment(bundle: Path, publishing: int, adding: int, seed: int) -> dict[str, Any]:
    """Kill and look, again and again, on one bundle."""
    draw, began, done = random.Random(seed), time.monotonic(), 0
    rounds: list[dict[str, Any]] = []
    told = bundle.with_name("told")
    for number, publishes in enumerate([True] * publishing + [False] * adding):
        told.write_bytes(b"")
        child = fork(lambda publishes=publishes, done=done: work(bundle, told, done, publishes))
        until = time.monotonic() + 60
        while told.stat().st_size == 0 and time.monotonic() < until:  # it has opened the bundle and begun
            time.sleep(0.001)
        time.sleep(draw.random() * (0.25 if publishes else 0.05))
        os.kill(child, signal.SIGKILL)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        lines = told.read_bytes().decode().split("\n")[:-1]
        acknowledged = done + len([line for line in lines if line == "write"])
        # The state after the acknowledged writes, or after the one that was under way as well: nothing else.
        found = [n for n in (acknowledged, acknowledged + 1) if in_process(lambda n=n: check(bundle, n)) == 0]
        versions = sum(line == "version" for line in lines)
        rounds.append(
            {"publishes": publishes, "died": died, "acknowledged": acknowledged, "found": found, "versions": versions}
        )
        if not found:
            break
        done = found[0]
        print(f"\r{number + 1} kills, {acknowledged} writes", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        "kills": sum(entry["died"] for entry in rounds),
        "wrong": sum(not entry["found"] for entry in rounds),
        "writes": done,
        "versions": sum(entry["versions"] for entry in rounds),
        "under way and there": sum(entry["found"] == [entry["acknowledged"] + 1] for entry in rounds),
        "seconds": round(time.monotonic() - began, 1),
    }


def changes(number: int) -> list[Change]:
    """Return write number `number`: a few labels added, replaced or deleted, always the same."""
    draw = np.random.default_rng(number)
    made = []
    for _ in range(int(draw.integers(1, 6))):
        name = f"label {int(draw.integers(NAMES))}"
        made.append(Change(name) if draw.random() < 0.4 else Change(name, f"text {number}", unit(draw)))
    return made


def unit(draw: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a random unit row (D) in whole steps, so that it is a unit row again, bit by bit, when it has been made one."""
    row = np.zeros(WIDTH, dtype=np.float32)
    row[draw.choice(WIDTH, 4, replace=False)] = draw.choice([-0.5, 0.5], 4)
    return row


def make(bundle: Path) -> bool:
    """Publish a bundle of made-up labels."""
    from dexml.model import DualEncoder
    from dexml.types import LabelTable
    from training.imports import import_bundle

    names = tuple(f"label {number}" for number in range(LABELS))
    model = DualEncoder.make("bag", {}, "tokens", {"dimension": WIDTH, "start": "random"}, names)
    rows = torch.from_numpy(np.stack([unit(np.random.default_rng(10**6 + number)) for number in range(LABELS)]))
    import_bundle(bundle, "kill-store", model, LabelTable(names, names), rows, "exact", 0.05, {"labels": "made up"})
    return True


def work(bundle: Path, told: Path, done: int, publishes: bool) -> bool:
    """Write on from `done`, and publish version after version meanwhile; tell what was acknowledged, until killed."""
    said = os.open(told, os.O_WRONLY | os.O_APPEND)
    store = Store.open(bundle, writable=True)
    if publishes:

        def compact() -> None:
            while True:
                store.compact()
                os.write(said, b"version\n")

        threading.Thread(target=compact, daemon=True).start()
    while True:
        store.write(changes(done))
        os.write(said, b"write\n")
        done += 1


def check(bundle: Path, writes: int) -> bool:
    """Return whether the bundle opens, verified, with what the first `writes` writes left, and nothing else."""
    expected: dict[str, tuple[str, bytes]] = {}
    for number in range(LABELS):
        name = f"label {number}"
        expected[name] = (name, unit(np.random.default_rng(10**6 + number)).tobytes())
    for number in range(writes):
        for change in changes(number):
            expected.pop(change.id, None)
            if change.row is not None:
                expected[change.id] = (change.text, change.row.tobytes())
    labels, index = (live := Store.open(bundle).live).labels, live.index
    rows = labels.live()
    found = {
        labels.ids[row]: (labels.texts[row], vector.tobytes())
        for row, vector in zip(rows.tolist(), index.snapshot(rows).numpy(), strict=True)
    }
    return found == expected


def fork(task: Any) -> int:
    """Run `task` in a process of its own; return its number. It ends with 0 where the task returns True."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = 0 if task() else 2
    except BaseException as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def in_process(task: Any) -> int:
    """Return the exit code of `task`, run in a process of its own."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(task), 0)[1])


if __name__ == "__main__":
    main()
