"""NoProp beside back-propagation: ten classes made up, and the tower `noprop` beside its base on real data.

python benchmarks/bench_noprop.py [--seeds 0 1 2]                         ten classes, a minute
python benchmarks/bench_noprop.py --data FOLDER [--seeds 0 1 2]
The first block alone is always shown: where it does as well, the chain behind it adds nothing. With a data set: validation rows
held out of the training rows, the best epoch of each run; the test rows are not read. Writes results/noprop[_NAME].json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_result
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data import open_format
from dexml.config import load
from dexml.heads.noprop import Blocks
from dexml.towers.noprop import NoPropTower
from training.config import Config, settle
from training.run import Progress, Run, hold_out
from training.steps import FrozenFeatures

ROOT = Path(__file__).resolve().parents[1]
CLASSES, CLUSTERS, WIDTH, HIDDEN, BLOCKS = 10, 4, 32, 64, 10
SPREAD = 1.0  # of cluster centres, in deviations of a cluster
BATCH, RATE = 128, 1e-3
END_TO_END = "the same blocks, by back-propagation"


@dataclass(frozen=True, eq=False)
class Made:
    """Rows (N, WIDTH) of CLASSES classes of CLUSTERS clusters each, and their numbers (N), to train on and to ask."""

    rows: Tensor
    numbers: Tensor
    asked: Tensor
    truth: Tensor

    @staticmethod
    def of(seed: int, count: int = 4000) -> Made:
        """Return a problem; a quarter is kept to ask."""
        draw = torch.Generator().manual_seed(seed)
        centres = SPREAD * torch.randn(CLASSES, CLUSTERS, WIDTH, generator=draw)
        numbers = torch.randint(CLASSES, (count,), generator=draw)
        clusters = torch.randint(CLUSTERS, (count,), generator=draw)
        rows = centres[numbers, clusters] + torch.randn(count, WIDTH, generator=draw)
        rest = count * 3 // 4
        return Made(rows[:rest], numbers[:rest], rows[rest:], numbers[rest:])

    def share(self, scores: Tensor) -> float:
        """Return the share of asked rows whose class has the largest score (N, CLASSES)."""
        return float((scores.argmax(1) == self.truth).float().mean())


def trained_blocks(made: Made, epochs: int, seed: int) -> Blocks:
    """Return blocks trained each alone, all in one sweep; a class is its unit vector."""
    torch.manual_seed(seed)
    blocks = Blocks(BLOCKS, WIDTH, CLASSES, HIDDEN, CLASSES**-0.5)
    blocks.start()
    targets = torch.eye(CLASSES)[made.numbers]
    optimizer = torch.optim.AdamW(blocks.parameters(), lr=RATE)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(made.rows)), BATCH):
            optimizer.zero_grad()
            blocks.losses(made.rows[rows], targets[rows]).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return blocks


def by_backpropagation(made: Made, hidden: int, epochs: int, seed: int) -> float:
    """Return the accuracy of a network of one hidden layer under cross-entropy."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(WIDTH, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(made.rows)), BATCH):
            optimizer.zero_grad()
            cross_entropy(net(made.rows[rows]), made.numbers[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        return made.share(net(made.asked))


@torch.no_grad()
def accuracies(made: Made, blocks: Blocks, seed: int) -> dict[str, float]:
    """Return what blocks answer from pure noise: along the mean, with noise on the way, and the first alone."""
    draw = torch.Generator().manual_seed(seed)
    start = torch.randn(CLASSES, generator=draw)  # one for all rows, as in the tower
    starts = torch.randn(len(made.asked), CLASSES, generator=draw)
    return {
        "NoProp, one z_0, along the mean": made.share(blocks.denoise(made.asked, start)),
        "NoProp, a z_0 and noise for each row": made.share(blocks.denoise(made.asked, starts, draw)),
        "block 1 alone": made.share(blocks.denoise(made.asked, start, blocks=1)),
    }


def classes(seeds: list[int], epochs: int) -> dict[str, list[float]]:
    """Measure and print the ten classes."""
    found: dict[str, list[float]] = {}
    for seed in seeds:
        made = Made.of(seed)
        figures = accuracies(made, trained_blocks(made, epochs, seed), seed)
        for hidden in (HIDDEN, BLOCKS * HIDDEN):
            figures[f"back-propagation, {hidden} units"] = by_backpropagation(made, hidden, epochs, seed)
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
    table = Table(title=f"{CLASSES} classes, {BLOCKS} blocks of {HIDDEN} units, {epochs} epochs: accuracy by seed {seeds}")
    for column in ("way", "by seed", "mean"):
        table.add_column(column)
    for name, values in found.items():
        table.add_row(name, ", ".join(f"{value:.3f}" for value in values), f"{np.mean(values):.4f}")
    Console(width=120).print(table)
    return found


class EndToEnd(FrozenFeatures):
    """The control: base, labels and all blocks under the config's loss on z_T, back-propagated through the chain."""


class EndToEndRun(Run):
    """A run of the control."""

    def _method(self, loss: Any, labels: Any, excluded: Any) -> FrozenFeatures:
        return EndToEnd(self.config, self.model, loss, self.train.texts, labels, self.positives)


def trained(folder: Path, settings: list[str], seed: int, make: type[Run]) -> dict[str, Any]:
    """Return the best validation of a training, what its parts answer then, and the seconds."""
    fixed = [f"data.path={folder}", "out=/tmp/bench_noprop", f"seed={seed}", "index.name=exact", "encoder.name=transformer"]
    read = load(Config, ROOT / "training" / "configs" / "cpu.toml", [*fixed, "validation.fraction=0.2", *settings])
    files = open_format(folder)
    labels, train = files.labels(), files.read("train")
    config, _ = settle(read, len(train))
    kept, watched = hold_out(config.model_copy(update={"seed": 0}), train)  # the same rows for every seed
    assert watched is not None
    run, best, epoch, began = make(config, labels, kept, watched), (-1.0, -1.0, -1.0), 0, time.monotonic()

    def see(now: Progress) -> None:
        nonlocal best, epoch
        found = (now.precision_1 or 0.0, now.precision_3 or 0.0, now.precision_5 or 0.0)
        if sum(found) > sum(best):
            best, epoch = found, now.epoch

    run.go(see)
    about: dict[str, Any] = {**dict(zip(("P@1", "P@3", "P@5"), best, strict=True)), "epoch": epoch}
    about["seconds"] = time.monotonic() - began
    if isinstance(run.model.tower, NoPropTower) and make is Run and run.stopped_early:
        about["parts"] = run.method.notes(run)[-1]  # of the best epoch's weights, which are put back
    return about


def real(folder: Path, seeds: list[int], epochs: int) -> dict[str, Any]:
    """Train each base alone, with blocks trained each alone behind it, and with them back-propagated; print the table."""
    long = [f"training.epochs={epochs}", "training.patience=4"]
    found: dict[str, Any] = {}
    for base in ("identity", "residual"):
        blocks = ["tower.name=noprop", f"tower.base={base}"]
        ways: dict[str, tuple[list[str], type[Run]]] = {
            base: ([f"tower.name={base}"], Run),
            f"NoProp on {base}": (blocks, Run),
            f"NoProp on {base}, 1 block": ([*blocks, "tower.blocks=1"], Run),
            f"{END_TO_END}, on {base}": (blocks, EndToEndRun),
        }
        for name, (settings, make) in ways.items():
            found[name] = [trained(folder, [*long, *settings], seed, make) for seed in seeds]
            print(name, found[name], flush=True)
    table = Table(title=f"{folder.name}: percent on validation rows, mean of seeds {seeds} (deviation)")
    for column in ("way", "P@1", "P@3", "P@5", "best epoch", "seconds"):
        table.add_column(column)
    for name, runs in found.items():
        figures = [[run[key] for run in runs] for key in ("P@1", "P@3", "P@5")]
        shown = [f"{np.mean(values):.2f} ({np.std(values):.2f})" for values in figures]
        table.add_row(name, *shown, ", ".join(str(r["epoch"]) for r in runs), f"{np.mean([r['seconds'] for r in runs]):.0f}")
    Console(width=140).print(table)
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=0, help="default: 60 for the classes, 20 for a data set")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.data is None:
        print(write_result("noprop", {"machine": describe(), "ways": classes(given.seeds, given.epochs or 60)}))
        return
    found = real(given.data.resolve(), given.seeds, given.epochs or 20)
    print(write_result(f"noprop_{given.data.name}", {"machine": describe(), "seeds": given.seeds, "runs": found}))


if __name__ == "__main__":
    main()
