"""dexml beside PECOS and omikuji on one data set: the same rows, the same metrics, the same two cores.

usage: python benchmarks/bench_peers.py FOLDER [--config training/configs/cpu.toml] [--seeds 0 1 2]
FOLDER holds a data set in any format that dexml reads. The peers get an environment of their own (.venv-peers).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse
from machine import describe, write_result
from rich.console import Console
from rich.table import Table

from data import open_format
from dexml import metrics
from dexml.types import Split

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers"
# libpecos asks for torch; ours is named first, so that a CPU build that pip can find is taken.
WHEELS = [(ROOT / "requirements" / "torch.txt").read_text().strip(), "libpecos==1.2.8", "omikuji==0.5.2", "scikit-learn==1.5.2"]


def hand_over(train: Split, test: Split, folder: Path) -> None:
    """Write what the peers read: a text a line, and the labels of the training rows (N, L)."""
    for name, split in (("train", train), ("test", test)):
        lines = (" ".join(text.split()) for text in split.texts)  # a text may hold line ends
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    positives = train.positives
    ones = np.ones(len(positives.indices), dtype=np.float32)
    shape = (len(train), positives.num_labels)
    scipy.sparse.save_npz(folder / "labels.npz", scipy.sparse.csr_matrix((ones, positives.indices, positives.indptr), shape))


def peers(train: Split, test: Split) -> dict[str, dict[str, object]]:
    """Return ranked ids (N, 100) and seconds of each peer."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *WHEELS], check=True)
    with tempfile.TemporaryDirectory() as out:
        script = Path(__file__).parent / "peers" / "linear.py"
        hand_over(train, test, Path(out))
        done = subprocess.run([str(python), str(script), out], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        seconds = json.loads((Path(out) / "seconds.json").read_text())
        return {name: {"ranked": np.load(Path(out) / f"{name}.npy"), **spent} for name, spent in seconds.items()}


def ours(folder: Path, config: Path, seed: int) -> dict[str, float]:
    """Return the figures of one training through the command line, with its seconds."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "dexml"]
        settings = ["--set", f"data.path={folder}", "--set", f"out={out}/run", "--set", f"seed={seed}"]
        start = time.perf_counter()
        first = {**os.environ, "XDG_CACHE_HOME": f"{out}/cache"}  # features and crossovers are not there from an earlier run
        subprocess.run([*command, "train", str(config), *settings], check=True, stderr=subprocess.DEVNULL, cwd=ROOT, env=first)
        trained = time.perf_counter() - start
        figures = Path(out) / "figures.json"
        subprocess.run([*command, "evaluate", f"{out}/run", "--json", str(figures)], check=True, capture_output=True, cwd=ROOT)
        found = json.loads(figures.read_text())
        seconds = found.pop("seconds")
        found.pop("sizes")
        return {**found, "train": trained, "predict": seconds["total"]}


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, default=ROOT / "training" / "configs" / "cpu.toml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    files = open_format(folder)
    train, test = files.read("train"), files.read("test")
    truth, counts = test.positives, train.positives.counts()
    weights = metrics.propensity_weights(counts, len(train), *metrics.DEFAULT_PROPENSITY)
    rows: dict[str, dict[str, float]] = {}
    for name, answer in peers(train, test).items():
        figures = dict(metrics.table(np.asarray(answer["ranked"]), truth, weights))
        rows[name] = {**figures, "train": float(str(answer["train"])), "predict": float(str(answer["predict"]))}
    runs = [ours(folder, chosen.config.resolve(), seed) for seed in chosen.seeds]
    rows[f"dexml {chosen.config.stem}.toml"] = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    table = Table(title=f"{folder.name}: test, percent; dexml: mean of seeds {chosen.seeds}; whole-process training seconds")
    table.add_column("")
    for key in runs[0]:
        table.add_column(key, justify="right")
    for name, figures in rows.items():
        table.add_row(name, *[f"{figures[key]:.1f}" for key in runs[0]])
    Console(width=140).print(table)
    write_result(f"peers_{folder.name}", {"machine": describe(), "seeds": chosen.seeds, "rows": rows, "runs": runs})


if __name__ == "__main__":
    main()
