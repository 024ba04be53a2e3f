"""How true the probabilities of a calibrated bundle's answers are on a split, before and after; with a reliability diagram.

python benchmarks/bench_calibration.py RUN DATA [--split test] [--name esco13k]

RUN is a bundle that `dexml train` or `dexml calibrate` has calibrated. "perfect" is the ECE that the calibrated probabilities
would still have if they were true: hits drawn by them, one by one. Less cannot be told apart on so few answers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, write_result
from matplotlib.figure import Figure
from plots import COLOURS, FAINT, INK

from data import open_format
from dexml.metrics import adaptive_ece_at, ece_at, reliability
from index.retriever import Retriever
from training.calibration import Measured, measure
from training.evaluate import numbers_of

K, DRAWS = 5, 20
PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def perfect(measured: Measured) -> dict[str, float]:
    """Return the mean errors @1 and @5 of the calibrated probabilities over hits that were drawn by them."""
    given, random = measured.probabilities["calibrated"], np.random.default_rng(0)
    drawn = [random.random(given.shape) < given for _ in range(DRAWS)]
    errors = {"ECE": ece_at, "adaptive ECE": adaptive_ece_at}
    return {
        f"{name}@{k}": float(np.mean([error(k, given, hits) for hits in drawn]))
        for k in (1, K)
        for name, error in errors.items()
    }


def diagram(path: Path, title: str, measured: Measured) -> Path:
    """Draw the reliability curve of each way over the first 5 answers, the diagonal being true, and return the PNG's path."""
    figure = Figure(figsize=(5.2, 5.4), dpi=160, facecolor="white", layout="constrained")
    axes = figure.add_subplot(facecolor="white")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    for number, (way, given) in enumerate(measured.probabilities.items()):
        curve = reliability(K, given, measured.hits)
        label = f"{way}: adaptive ECE@{K} {curve.ece:.3f}"
        axes.plot(curve.confidence, curve.accuracy, marker="o", markersize=4, color=COLOURS[number], label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("probability of an answer", color=INK)
    axes.set_ylabel("share of such answers that are right", color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.legend(loc="lower right", fontsize=9, frameon=False, labelcolor=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def main() -> None:
    """Measure, print, draw and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--name", help="of the result; default: the data set's folder")
    given = parser.parse_args()
    name = given.name or given.data.resolve().name
    retriever, files = Retriever.open(given.run), open_format(given.data)
    fitted = retriever.bundle.calibration
    if fitted is None:
        parser.error(f"{given.run} has no calibration: dexml calibrate {given.run}")
    split = files.read(given.split)
    measured = measure(retriever, split, numbers_of(files.labels(), retriever))
    figures: dict[str, dict[str, Any]] = measured.figures()
    figures["perfect"] = perfect(measured)
    for way, of_way in figures.items():
        print(f"{way:12}", "  ".join(f"{kind} {value:.4f}" for kind, value in of_way.items()))
    thresholds = []
    calibrated = measured.probabilities["calibrated"]
    for precision in PRECISIONS:
        least = fitted.threshold(precision)
        if least is None or not (kept := calibrated >= least).any():
            print(f"precision {precision:g}: out of reach")
            continue
        found = {"asked": precision, "probability": least, "precision": float(measured.hits[kept].mean())}
        found |= {"labels_a_row": float(kept.sum() / len(kept)), "rows_answered": float(kept.any(axis=1).mean())}
        thresholds.append(found)
        print("  ".join(f"{key} {value:.3f}" for key, value in found.items()))
    result = {
        "machine": describe(),
        "split": given.split,
        "rows": len(measured.hits),
        "calibration": {**fitted.about(), "temperature": fitted.temperature, "share": fitted.share},
        "figures": figures,
        "thresholds": thresholds,
    }
    print(write_result(f"calibration_{name}", result))
    picture = Path(__file__).parents[1] / "docs" / "img" / f"calibration_{name}.png"
    print(diagram(picture, f"{name}, {given.split}: first {K} answers of {len(measured.hits):,} rows", measured))


if __name__ == "__main__":
    main()
