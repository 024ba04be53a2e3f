"""What ⊥Grad, StableMax and a low temperature do to a training: held-out figures, and how many positives lose their gradient.

python benchmarks/bench_stability.py training/configs/cpu.toml FOLDER [--seeds 0 1] [--ways "AdamW" "⊥Grad"]
Trains on four fifths of the training rows and measures on the others; test rows are not looked at. Prints a table; writes
benchmarks/results/stability_NAME.json, where ways that were run before stay. About a minute and a half a run on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from machine import describe, write_result
from rich.console import Console
from rich.table import Table

from data import open_format
from dexml import metrics
from dexml.config import load
from dexml.errors import InputError
from dexml.kernels import choose
from training.config import Config, settle
from training.run import Progress, Run, hold_out

WAYS: dict[str, list[str]] = {
    "AdamW": [],
    "⊥Grad": ["optimizer.name=orthograd"],
    "AdamW, temperature 0.01": ["loss.temperature=0.01"],
    "⊥Grad, temperature 0.01": ["optimizer.name=orthograd", "loss.temperature=0.01"],
    "StableMax, its highest temperature": ["loss.name=stablemax"],
}
TYPES = ("float32", "float16", "bfloat16")


def measured(config: Path, folder: Path, settings: list[str], seed: int) -> dict[str, Any]:
    """Train once and return figures on the rows held out, in percent, and what was without a gradient in the last epoch."""
    fixed = [
        f"data.path={folder}",
        f"out={tempfile.gettempdir()}/stability",
        f"seed={seed}",
        "validation.fraction=0.2",
        "validation.max_rows=2000",
    ]
    read = load(Config, config, [*fixed, *settings])
    files = open_format(read.data.path)
    labels, split = files.labels(), files.read("train")
    settled, _ = settle(read, len(split), [*split.texts, *labels.texts])
    train, watched = hold_out(settled, split)
    assert watched is not None
    steps: list[Progress] = []
    run = Run(settled, labels, train, None)
    run.go(steps.append)
    queries, kernels = run.query_rows(watched.texts), choose()
    ranked = kernels.scan(queries, kernels.prepare(run.embeddings()), 100, 1.0).ids.numpy()
    last = [step.collapsed or {} for step in steps if step.epoch == steps[-1].epoch]
    return {
        "P@1": metrics.precision_at(ranked, watched.positives, 1),
        "P@5": metrics.precision_at(ranked, watched.positives, 5),
        "R@100": metrics.recall_at(ranked, watched.positives, 100),
        "temperature": settled.loss.options["temperature"],
        "loss": steps[-1].loss,
        "without gradient": {name: 100 * statistics.mean(step.get(name, math.nan) for step in last) for name in TYPES},
        "seconds a step": statistics.median(step.step_seconds for step in steps),
    }


def highest_temperature(folder: Path, config: Path) -> float:
    """Return the highest temperature at which StableMax takes all labels that are trained."""
    try:
        measured(config, folder, ["loss.name=stablemax", "loss.temperature=1"], 0)
    except InputError as error:
        return float(str(error).rpartition("loss.temperature to ")[2].split()[0])
    return 1.0


def main() -> None:
    """Train every way with every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    name = f"stability_{folder.name}"
    before = Path(os.environ.get("OUT") or Path(__file__).parent / "results") / f"{name}.json"
    rows: dict[str, dict[str, Any]] = json.loads(before.read_text(encoding="utf-8"))["rows"] if before.exists() else {}
    for way in chosen.ways:
        settings = list(WAYS[way])
        if way.startswith("StableMax"):
            settings.append(f"loss.temperature={highest_temperature(folder, chosen.config)}")
        rows[way] = {str(seed): measured(chosen.config, folder, settings, seed) for seed in chosen.seeds}
        write_result(name, {"machine": describe(), "config": chosen.config.name, "rows": rows})
    table = Table(title=f"{folder.name}, {chosen.config.name}: rows held out, percent, median of seeds")
    for column in (
        "way",
        "P@1",
        "P@5",
        "R@100",
        "temperature",
        *(f"without gradient, {number}" for number in TYPES),
        "ms a step",
    ):
        table.add_column(column)
    for way, runs in rows.items():
        figures = [statistics.median(run[key] for run in runs.values()) for key in ("P@1", "P@5", "R@100")]
        lost = [statistics.median(run["without gradient"][number] for run in runs.values()) for number in TYPES]
        milliseconds = 1000 * statistics.median(run["seconds a step"] for run in runs.values())
        temperature = next(iter(runs.values()))["temperature"]
        table.add_row(
            way, *(f"{f:.1f}" for f in figures), f"{temperature:g}", *(f"{f:.1f}" for f in lost), f"{milliseconds:.0f}"
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
