"""Kill an embedding job of 100,000 texts at its half, in every way that it can lose a process, and compare what it leaves.

python benchmarks/kill_embed.py [--texts 100000] [--engines local,ray]: writes benchmarks/results/kill_embed.json, exits with 1
unless after each kill the files are, byte by byte, those of a job that was left alone. The cases: SIGKILL of the process of
the local engine, and of Ray's driver, each followed by the same command; SIGKILL of a Ray worker, and of one of two Ray nodes
with its raylet and workers, which the job must get over by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe, write_result

ROOT = Path(__file__).parents[1]
ROWS = 1000  # texts of a part


def main() -> None:
    """Run the experiment and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--engines", default="local,ray" if importlib.util.find_spec("ray") else "local")
    parser.add_argument("--no-result", action="store_true", help="print the result and write no file")
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        cases = experiment(Path(scratch), given.texts, given.engines.split(","))
    result = {
        "texts": given.texts,
        "parts": -(-given.texts // ROWS),
        "same": all(case["same"] for case in cases),
        "cases": cases,
    }
    if not given.no_result:
        write_result("kill_embed", {"machine": describe(), **result})
    print(json.dumps(result, indent=1))
    sys.exit(0 if result["same"] else 1)


def experiment(folder: Path, count: int, engines: list[str]) -> list[dict[str, Any]]:
    """Embed once undisturbed, and once for each way to be killed."""
    bundle, texts, whole = folder / "bundle", folder / "texts.txt", folder / "whole"
    make(bundle, texts, count)
    began = time.monotonic()
    child = start(bundle, texts, whole)
    assert child.wait() == 0, said(child)
    cases = [{"case": "local, left alone", "same": True, "seconds": round(time.monotonic() - began, 1)}]
    expected = digest(whole)
    for engine, victim in (("local", "process"), ("ray", "driver"), ("ray", "worker"), ("ray", "node")):
        if engine in engines:
            print(f"{engine}: killing the {victim}", file=sys.stderr, flush=True)
            out = folder / "cut"
            case = {"case": f"{engine}, {victim} killed", **cut(bundle, texts, out, engine, victim, count)}
            cases.append({**case, "same": case["exit"] == 0 and digest(out) == expected})
            shutil.rmtree(out)
    return cases


def make(bundle: Path, texts: Path, count: int) -> None:
    """Publish a bundle of a random model over made-up words, and write texts of them."""
    import torch

    from dexml.model import DualEncoder
    from dexml.types import LabelTable
    from training.imports import import_bundle

    draw = random.Random(0)
    words = ["".join(draw.choice(("ba", "de", "fi", "go", "ku", "la", "me", "ni")) for _ in range(3)) for _ in range(2000)]
    names = tuple(" ".join(draw.sample(words, 4)) for _ in range(500))
    model = DualEncoder.make("bag", {}, "tokens", {"dimension": 128, "start": "random"}, names)
    table = LabelTable(tuple(map(str, range(len(names)))), names)
    rows = torch.nn.functional.normalize(torch.randn(len(names), 128, generator=torch.Generator().manual_seed(0)))
    import_bundle(bundle, "kill-embed", model, table, rows, "exact", 0.05, {"labels": "made up"})
    texts.write_text("".join(" ".join(draw.choices(words, k=12)) + "\n" for _ in range(count)), encoding="utf-8")


def start(bundle: Path, texts: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """Start `dexml embed` in a process group of its own."""
    words = [sys.executable, "-m", "dexml", "embed", str(bundle), str(texts), str(out), "--rows", str(ROWS), *more]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def cut(bundle: Path, texts: Path, out: Path, engine: str, victim: str, count: int) -> dict[str, Any]:
    """Kill the victim at half of the job; go on with the same command where the job itself is gone."""
    cluster: Any = None
    more = ["--engine", "ray", "--workers", "2"] if engine == "ray" else []
    if victim == "node":
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        more += ["--ray-address", cluster.address]
    began = time.monotonic()
    child = start(bundle, texts, out, *more)
    while (there := len(list(out.glob("part-*.json")))) < count // ROWS // 2:
        assert child.poll() is None, said(child)
        time.sleep(0.001)
    facts: dict[str, Any] = {"parts_at_kill": there}
    if victim == "node":
        cluster.remove_node(node, allow_graceful=False)
    else:
        os.kill(child.pid if victim in ("process", "driver") else ray_worker(child.pid), signal.SIGKILL)
    code = child.wait()
    if victim in ("process", "driver"):
        assert code == -signal.SIGKILL
        child = start(bundle, texts, out, *more)
        code = child.wait()
    facts |= {"exit": code, "said": said(child), "seconds": round(time.monotonic() - began, 1)}
    if cluster is not None:
        cluster.shutdown()
    return facts


def ray_worker(driver: int) -> int:
    """Return a process among the driver's descendants in which an actor of ours is."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    for process in parents:
        above = process
        while above in parents and above != driver:
            above = parents[above]
        if above == driver and b"ray::_Worker" in (Path("/proc") / str(process) / "cmdline").read_bytes():
            return process
    raise AssertionError("Ray has no worker of ours")


def said(child: subprocess.Popen[str]) -> str:
    """Return the last line that a process wrote."""
    assert child.stdout is not None
    lines = child.stdout.read().strip().splitlines()
    return lines[-1] if lines else ""


def digest(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a job, hidden ones too."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}


if __name__ == "__main__":
    main()
