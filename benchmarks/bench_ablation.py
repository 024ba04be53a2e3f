"""One model under each loss: the temperature is chosen for each on validation rows, then all rows are trained on.

usage: python benchmarks/bench_ablation.py FOLDER [--seeds 0 1 2]
Prints P@1, P@5 and R@100 on test, the mean of the seeds; writes benchmarks/results/ablation_NAME.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from machine import describe, write_result
from rich.console import Console
from rich.table import Table

from data import open_format
from dexml import metrics
from dexml.config import load
from dexml.kernels import choose
from dexml.types import Int64Array, LabelTable, Split
from training.config import Config, settle
from training.run import Progress, Run, hold_out

ROOT = Path(__file__).resolve().parents[1]
LOSSES: dict[str, list[str]] = {
    "decoupled softmax": ["loss.name=decoupled_softmax"],
    "decoupled softmax, one sampled positive": ["loss.name=decoupled_softmax", 'loss.positives="one"'],
    "soft top-1": ["loss.name=soft_topk", "loss.k=1"],
    "soft top-5": ["loss.name=soft_topk", "loss.k=5"],
    "soft top-100": ["loss.name=soft_topk", "loss.k=100"],
    "softmax": ["loss.name=softmax"],
    "binary cross-entropy": ["loss.name=bce"],
}
TEMPERATURES = (0.03, 0.05, 0.08, 0.12, 0.2)


def config(folder: Path, settings: list[str], seed: int) -> Config:
    """Return cpu.toml with the settings of one run, on word pieces and bigrams alone: losses show on any model."""
    path = ROOT / "training" / "configs" / "cpu.toml"
    fixed = [f"data.path={folder}", f"out={tempfile.gettempdir()}/ablation", f"seed={seed}"]
    model = ["encoder.name=bag", "tower.name=tokens", "training.epochs=8"]
    return load(Config, path, [*fixed, *model, "validation.fraction=0.2", *settings])


def trained(settled: Config, labels: LabelTable, train: Split) -> Run:
    """Return a finished run on `train`."""

    def ignore(progress: Progress) -> None:
        return None

    run = Run(settled, labels, train, None)
    run.go(ignore)
    return run


def answers(run: Run, split: Split) -> Int64Array:
    """Return the top 100 of every row of `split`, by exact scan."""
    queries, _ = run.model.embed_queries(split.texts)
    kernels = choose()
    ids: Int64Array = kernels.scan(queries, kernels.prepare(run.embeddings()), 100, 1.0).ids.numpy()
    return ids


def main() -> None:
    """Choose, train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    chosen = parser.parse_args()
    files = open_format(chosen.folder.resolve())
    labels, train, test = files.labels(), files.read("train"), files.read("test")
    table = Table(title=f"{chosen.folder.name}: one model under each loss, percent on test, mean of seeds {chosen.seeds}")
    for column in ("loss", "temperature", "P@1", "P@5", "R@100", "P@1 on validation, by temperature"):
        table.add_column(column)
    rows = {}
    for name, settings in LOSSES.items():
        on_validation = {}
        for temperature in TEMPERATURES:
            settled, _ = settle(config(chosen.folder.resolve(), [*settings, f"loss.temperature={temperature}"], 0), len(train))
            kept, watched = hold_out(settled, train)
            assert watched is not None
            ranked = answers(trained(settled, labels, kept), watched)
            on_validation[temperature] = metrics.precision_at(ranked, watched.positives, 1)
        best = max(on_validation, key=lambda temperature: on_validation[temperature])
        figures = []
        for seed in chosen.seeds:
            settled, _ = settle(config(chosen.folder.resolve(), [*settings, f"loss.temperature={best}"], seed), len(train))
            ranked, truth = answers(trained(settled, labels, train), test), test.positives
            figures.append(
                (
                    metrics.precision_at(ranked, truth, 1),
                    metrics.precision_at(ranked, truth, 5),
                    metrics.recall_at(ranked, truth, 100),
                )
            )
        first, fifth, recall = np.mean(figures, axis=0)
        table.add_row(
            name,
            str(best),
            f"{first:.1f}",
            f"{fifth:.1f}",
            f"{recall:.1f}",
            " ".join(f"{t}: {p:.1f}" for t, p in on_validation.items()),
        )
        rows[name] = {"temperature": best, "validation P@1": on_validation, "P@1, P@5, R@100 by seed": figures}
    Console(width=140).print(table)
    write_result(f"ablation_{chosen.folder.name}", {"machine": describe(), "seeds": chosen.seeds, "rows": rows})


if __name__ == "__main__":
    main()
