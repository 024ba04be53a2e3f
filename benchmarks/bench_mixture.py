"""Top-K softmax gating: what a split expert costs, the rate of the fit, and the tower `mixture` beside its base on real data.

python benchmarks/bench_mixture.py                                        the theory, a minute
python benchmarks/bench_mixture.py --data FOLDER [--seeds 0 1 2] [--bases identity tokens summed]
With a data set: validation rows held out of the training rows, watched after every epoch, and the best epoch of each run; each
base alone, and a mixture of experts behind it. The test rows are not read. Writes benchmarks/results/mixture[_NAME].json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_result
from mixture_density import Mixture, fit, lines_error, variation
from rich.console import Console
from rich.table import Table

from data import open_format
from dexml.config import load
from dexml.towers.mixture import MixtureTower, top_gates
from training.config import Config, settle
from training.run import Progress, Run, hold_out

ROOT = Path(__file__).resolve().parents[1]
TWO = Mixture.of((25, -8, -20, 15, 0.3), (0, 0, 20, -5, 0.4), chosen=1)  # the paper's example
THREE = Mixture.of((25, -8, -20, 15, 0.3), (0, 0, 20, -5, 0.4), (12, -2, 0, 5, 0.35), chosen=2)
SIZES = (500, 1000, 2000, 5000, 10_000, 20_000)
ENCODERS = {"identity": "transformer", "residual": "transformer", "tokens": "bag", "summed": "joint"}
MIXTURES = ((4, 2), (8, 2), (16, 2))  # experts, chosen


def split_errors() -> dict[str, dict[str, list[float]]]:
    """Return mean and largest total variation over x of THREE with an expert split, by K and which."""
    found: dict[str, dict[str, list[float]]] = {}
    for chosen in (2, 3):
        errors = [variation(THREE, THREE.split(number, chosen)) for number in range(3)]
        found[str(chosen)] = {"mean": [float(e.mean()) for e in errors], "max": [float(e.max()) for e in errors]}
    return found


def slope(truth: Mixture, number: int | None, repeats: int, sweeps: int, gate_steps: int = 0) -> dict[str, Any]:
    """Return median errors of a fit by sample size, and their slope; gates fixed, or learned; one expert `number` split."""
    errors = []
    for size in SIZES:
        found = []
        for repeat in range(repeats):
            random = np.random.default_rng((size, repeat))
            x, y = truth.draw(size, random)
            start = truth if number is None else truth.split(number, truth.chosen + 1)
            k = len(start.beta)
            start = replace(
                start, a=start.a + random.normal(size=k), b=start.b + 0.5 * random.normal(size=k), sigma=1.5 * start.sigma
            )
            found.append(lines_error(fit(x, y, start, sweeps, gate_steps, 1.0), truth))
        errors.append(np.median(found, axis=0))
    whole, cells = np.array([e.sum() for e in errors]), np.array(errors)
    logs = np.log(SIZES)
    return {
        "median": [round(float(value), 5) for value in whole],
        "slope": float(np.polyfit(logs, np.log(whole), 1)[0]),
        "slope_of_cells": [float(np.polyfit(logs, np.log(column), 1)[0]) for column in cells.T],
    }


def theory(repeats: int) -> dict[str, Any]:
    """Measure and print what needs no data set."""
    split = split_errors()
    table = Table(title="total variation from the truth (K = 2 of 3 experts), one expert split")
    for column in ("K of the fit", "mean, by the expert split", "largest", "mean of all"):
        table.add_column(column)
    for chosen, errors in split.items():
        means, most = (", ".join(f"{value:.4f}" for value in errors[key]) for key in ("mean", "max"))
        table.add_row(chosen, means, most, f"{np.mean(errors['mean']):.4f}")
    Console(width=140).print(table)
    rates = {
        "2 experts, K = 1, gate fixed at the truth": slope(TWO, None, repeats, 30),
        "3 experts, K = 2, gate fixed at the truth": slope(THREE, None, repeats, 30),
        "3 experts, K = 2, expert 0 split, K = 3 fitted, gate fixed": slope(THREE, 0, repeats, 60),
    }
    table = Table(
        title=f"error of lines and deviations by sample size, {repeats} draws; gate fixed: −0.5 is the parametric rate"
    )
    for column in ("fit", *map(str, SIZES), "slope", "slope of each cell"):
        table.add_column(column)
    for name, about in rates.items():
        cells = ", ".join(f"{value:.2f}" for value in about["slope_of_cells"])
        table.add_row(name, *(f"{value:.3f}" for value in about["median"]), f"{about['slope']:.2f}", cells)
    Console(width=170).print(table)
    return {"split": split, "rates": rates}


def trained(folder: Path, settings: list[str], seed: int) -> dict[str, Any]:
    """Return the best validation of a training, the share of rows that choose each expert, and the seconds."""
    fixed = [f"data.path={folder}", "out=/tmp/bench_mixture", f"seed={seed}", "index.name=exact", "validation.fraction=0.2"]
    read = load(Config, ROOT / "training" / "configs" / "cpu.toml", [*fixed, *settings])
    files = open_format(folder)
    labels, train = files.labels(), files.read("train")
    config, _ = settle(read, len(train))
    kept, watched = hold_out(config.model_copy(update={"seed": 0}), train)  # the same rows for every seed
    assert watched is not None
    run, best, began = Run(config, labels, kept, watched), (-1.0, -1.0, -1.0), time.monotonic()

    def see(now: Progress) -> None:
        nonlocal best
        found = (now.precision_1 or 0.0, now.precision_3 or 0.0, now.precision_5 or 0.0)
        best = found if sum(found) > sum(best) else best

    run.go(see)
    about: dict[str, Any] = {**dict(zip(("P@1", "P@3", "P@5"), best, strict=True)), "seconds": time.monotonic() - began}
    about["parameters"] = sum(value.numel() for name, value in run.model.tower.named_parameters() if name != "free")
    if isinstance(run.model.tower, MixtureTower):
        tower = run.model.tower.eval()
        with torch.no_grad():
            rows = tower.base.queries(run.model.encoder.encode_many(watched.texts))
            gates = top_gates(rows @ tower.gate.T + tower.gate_bias, tower.chosen)
        about["chosen_by"] = [round(float(value), 3) for value in (gates > 0).float().mean(0)]
        about["note"] = tower.notes()[0]
    return about


def real(folder: Path, bases: list[str], seeds: list[int]) -> dict[str, Any]:
    """Train each base alone and with mixtures behind it, and print the table."""
    found: dict[str, Any] = {}
    for base in bases:
        ways = {base: [f"tower.name={base}"]}
        if base == "identity":
            ways["residual"] = ["tower.name=residual"]
        for experts, chosen in MIXTURES:
            of = [f"tower.base={base}", f"tower.experts={experts}", f"tower.chosen={chosen}"]
            ways[f"mixture of {base}, {chosen} of {experts}"] = ["tower.name=mixture", *of]
        for name, settings in ways.items():
            found[name] = [trained(folder, [f"encoder.name={ENCODERS[base]}", *settings], seed) for seed in seeds]
            print(name, [{key: one[key] for key in ("P@1", "P@3", "P@5")} for one in found[name]], flush=True)
    table = Table(title=f"{folder.name}: percent on validation rows, mean of seeds {seeds} (deviation)")
    for column in (
        "tower",
        "P@1",
        "P@3",
        "P@5",
        "parameters besides free vectors",
        "least and most chosen expert, share of rows",
    ):
        table.add_column(column)
    for name, runs in found.items():
        figures = [[run[key] for run in runs] for key in ("P@1", "P@3", "P@5")]
        used = [run["chosen_by"] for run in runs if "chosen_by" in run]
        table.add_row(
            name,
            *(f"{np.mean(values):.2f} ({np.std(values):.2f})" for values in figures),
            f"{runs[0]['parameters']:,}",
            f"{np.min(used):.2f}, {np.max(used):.2f}" if used else "",
        )
    Console(width=140).print(table)
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--bases", nargs="+", default=["identity", "tokens", "summed"], choices=list(ENCODERS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.data is None:
        print(write_result("mixture", {"machine": describe(), **theory(given.repeats)}))
        return
    found = real(given.data.resolve(), given.bases, given.seeds)
    print(write_result(f"mixture_{given.data.name}", {"machine": describe(), "seeds": given.seeds, "runs": found}))


if __name__ == "__main__":
    main()
