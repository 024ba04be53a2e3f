"""Kernel features: how their error falls, what FAISS finds over them, and heads and towers of them beside plain ones.

python benchmarks/bench_snnk.py [--seeds 100] [--bundle RUN]       errors and recall; also over the label rows of a bundle
python benchmarks/bench_snnk.py --data FOLDER                      trainings on a frozen transformer, by validation rows
With a data set, every setting is chosen on rows held out of the training rows; the chosen alone are measured on the test rows,
with models that never saw the rows held out. Writes benchmarks/results/snnk[_NAME].json.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from machine import describe, write_result
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from data import open_format
from dexml.bundle import Bundle
from dexml.config import load
from dexml.kernel_features import Function, KernelFeatures
from dexml.kernels import choose
from dexml.metrics import precision_at
from dexml.towers.linear import with_one
from dexml.types import Positives, Split
from training.config import Config, settle
from training.heads import Base, fitted, select, with_features
from training.run import Progress, Run, hold_out

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 16
COUNTS = (64, 256, 1024, 4096, 16384)  # of the reals of a row
KINDS: tuple[tuple[Function, float, float], ...] = (
    ("relu", 0.0, 0.0),
    ("sin", 0.0, 0.0),
    ("sin", 0.0, 0.03),
    ("cos", 0.0, 0.0),
    ("cos", 0.0, 0.03),
    ("cos", -1.0, 0.0),
)
"""Function, bias, damping."""
TEMPERATURES = (0.03, 0.06)
FEATURES = (512, 1024, 2048)


def unit(count: int, width: int, seed: int) -> Tensor:
    """Return random unit rows (count, width)."""
    return normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def made(function: Function, width: int, reals: int, seed: int, damping: float, independent: bool) -> KernelFeatures:
    """Return features of rows of `reals` numbers; `independent` directions are normally distributed, as in the paper."""
    count = reals if function == "relu" else reals // 2
    features = KernelFeatures(width, count, function, seed, damping)
    if independent:
        features.directions = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return features


def errors(seeds: int) -> list[dict[str, Any]]:
    """Return the root of the mean squared error of ⟨Φ, Ψ⟩ over 16 × 16 pairs of unit rows and all seeds, and its slope."""
    found = []
    for function, bias, damping in KINDS:
        for independent in (True, False):
            roots = []
            for reals in COUNTS:
                squares = []
                for seed in range(seeds):
                    x, w = unit(16, WIDTH, 10_000 + seed), unit(16, WIDTH, 20_000 + seed)
                    features = made(function, WIDTH, reals, seed, damping, independent)
                    scores = features.of_inputs(x) @ features.of_weights(w, bias).T
                    squares.append(float((scores - features.exact(x, w, bias)).square().mean()))
                roots.append(math.sqrt(np.mean(squares)))
            slope = float(np.polyfit(np.log(COUNTS), np.log(roots), 1)[0])
            about = {"function": function, "bias": bias, "damping": damping, "independent": independent}
            found.append({**about, "rmse": roots, "slope": slope})
    return found


def recall(queries: Tensor, labels: Tensor, name: str, reals: int = 4096) -> list[dict[str, Any]]:
    """Return the share of the ten labels that f ranks first which FAISS, flat over Ψ, answers Φ with."""
    found = []
    for function, bias, damping in KINDS:
        if damping and labels.shape[1] != WIDTH:  # which suits few dimensions
            continue
        for independent in (True, False):
            features = made(function, labels.shape[1], reals, 0, damping, independent)
            index = faiss.IndexFlatIP(features.dimension)
            index.add(features.of_weights(labels, bias).numpy())
            _, ids = index.search(features.of_inputs(queries).numpy(), 10)
            best = features.exact(queries, labels, bias).topk(10).indices.tolist()
            share = sum(len(set(a) & set(b)) for a, b in zip(best, ids.tolist(), strict=True)) / (10 * len(queries))
            about = {"rows": name, "function": function, "bias": bias, "damping": damping, "independent": independent}
            found.append({**about, "recall": share})
    return found


def theory(seeds: int, bundle: Path | None) -> dict[str, Any]:
    """Measure and print what needs no data set."""
    fall = errors(seeds)
    table = Table(
        title=f"RMSE of ⟨Φ, Ψ⟩ by the reals of a row, d = {WIDTH}, unit rows, {seeds} seeds; −½ is the theory's slope"
    )
    for column in ("f(z + b)", "damping", "directions", *map(str, COUNTS), "slope"):
        table.add_column(column)
    for one in fall:
        directions = "independent" if one["independent"] else "opposite pairs at right angles"
        roots = (f"{value:.4f}" for value in one["rmse"])
        table.add_row(f"{one['function']}, {one['bias']:g}", f"{one['damping']:g}", directions, *roots, f"{one['slope']:.3f}")
    Console(width=150).print(table)
    rows = recall(unit(200, WIDTH, 1), unit(1000, WIDTH, 2), f"1,000 random, d = {WIDTH}")
    if bundle is not None:
        labels = Bundle.open(bundle).embeddings
        some = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:200]]
        queries = normalize(some + unit(200, labels.shape[1], 3), dim=1)
        rows += recall(queries, labels, f"{len(labels):,} of a bundle, d = {labels.shape[1]}")
    table = Table(title="share of f's ten best that FAISS finds, flat over Ψ of 4,096 reals")
    for column in ("label rows", "f(z + b)", "damping", "directions", "recall@10"):
        table.add_column(column)
    for one in rows:
        directions = "independent" if one["independent"] else "opposite pairs at right angles"
        kind = f"{one['function']}, {one['bias']:g}"
        table.add_row(one["rows"], kind, f"{one['damping']:g}", directions, f"{one['recall']:.3f}")
    Console(width=150).print(table)
    return {"width": WIDTH, "reals": COUNTS, "seeds": seeds, "errors": fall, "recall": rows}


def figures(queries: Tensor, labels: Tensor, positives: Positives) -> list[float]:
    """Return P@1, P@3, P@5 in percent of rows (N, D) and (L, D), of any length."""
    kernels = choose()
    ids = kernels.scan(queries, kernels.prepare(labels, copy="none"), 5, 1.0).ids.numpy()
    return [precision_at(ids, positives, k) for k in (1, 3, 5)]


class Trials:
    """A data set with rows held out, and the trainings on the others."""

    def __init__(self, folder: Path) -> None:
        files = open_format(folder)
        self.folder, self.labels, self.test, self.all = folder, files.labels(), files.read("test"), files.read("train")

    def _settled(self, settings: list[str]) -> tuple[Config, Split, Split]:
        fixed = [f"data.path={self.folder}", "out=/tmp/bench_snnk", "index.name=exact", "encoder.name=transformer"]
        config, _ = settle(load(Config, ROOT / "training/configs/cpu.toml", [*fixed, *settings]), len(self.all))
        kept, watched = hold_out(config, self.all)
        assert watched is not None, "a data set of so few rows chooses nothing"
        return config, kept, watched

    def trained(self, *settings: str) -> dict[str, Any]:
        """Return what a training's best epoch answers of the rows held out and of the test rows, in how many seconds."""
        config, kept, watched = self._settled(list(settings))
        run = Run(config, self.labels, kept, watched)
        seen: list[Progress] = []
        began = time.monotonic()
        run.go(seen.append)
        seconds = time.monotonic() - began
        rows = run.embeddings()
        about = {"settings": settings, "dimension": run.model.dimension, "seconds": seconds, "epochs": run.best_epoch}
        watched_figures = figures(run.query_rows(watched.texts), rows, watched.positives)
        test = figures(run.query_rows(self.test.texts), rows, self.test.positives)
        return {**about, "validation": watched_figures, "test": test}

    def zero_shot(self) -> tuple[dict[str, Any], list[Base]]:
        """Return the transformer's own figures, and its rows of the three sides as heads read them."""
        config, kept, watched = self._settled(["tower.name=identity", "training.free_vectors=true"])
        model = Run(config, self.labels, kept, watched).model
        self.model, self.texts = model, model.embed_labels(self.labels.texts)
        sides = [Base.of(self.texts, model, split) for split in (kept, watched, self.test)]
        found = [figures(side.rows[:, :-1], self.texts, side.positives) for side in sides[1:]]
        about = {"settings": [], "dimension": model.dimension, "seconds": 0.0, "epochs": 0}
        return {**about, "validation": found[0], "test": found[1]}, sides

    def head(self, sides: list[Base], count: int | None, name: str = "ridge") -> dict[str, Any]:
        """Return the same of a head behind the transformer's rows, or behind `count` kernel features of them."""
        if count is not None:
            behind, texts = with_features(self.model, self.texts, count)
            of = behind.tower.get_submodule("features")
            assert isinstance(of, KernelFeatures)
            unit_rows = [normalize(side.rows[:, :-1], dim=1) for side in sides]
            rows = [with_one(normalize(of.of_inputs(side), dim=1)) for side in unit_rows]
            sides = [Base(given, texts, side.positives) for given, side in zip(rows, sides, strict=True)]
        began = time.monotonic()
        chosen = select(sides[0], sides[1], name, {}, lambda said: print(f"  {said}", flush=True))
        choosing, began = time.monotonic() - began, time.monotonic()
        for weights, seen in fitted(sides[0], name, chosen.options, chosen.stage):
            every = sides[0].of_all(weights, seen, chosen.scale)
        about = {"settings": [f"{key}={value}" for key, value in chosen.options.items()], "dimension": every.shape[1] + 1}
        found = [figures(side.rows, every, side.positives) for side in sides[1:]]
        seconds = time.monotonic() - began
        return {**about, "seconds": seconds, "choosing": choosing, "epochs": 0, "validation": found[0], "test": found[1]}


def best(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the one that answers the rows held out best."""
    return max(trials, key=lambda trial: sum(trial["validation"]))


def real(folder: Path) -> dict[str, Any]:
    """Train and fit all, print the chosen ones."""
    trials = Trials(folder)
    zero, sides = trials.zero_shot()
    found = {"as it is": zero, "ridge head": trials.head(sides, None)}
    found["ridge head, kernel features"] = best([trials.head(sides, count) for count in FEATURES])
    plain = [trials.trained("tower.name=residual", f"loss.temperature={tau}") for tau in TEMPERATURES]
    found["residual tower"] = best(plain)
    kernel = ["tower.name=kernel", "tower.base=residual"]
    ways = [[f"tower.features={count}", f"loss.temperature={tau}"] for count in FEATURES for tau in TEMPERATURES]
    found["kernel tower"] = best([trials.trained(*kernel, *way) for way in ways])
    table = Table(title=f"{folder.name}: a frozen transformer; settings by validation, seconds without reading texts")
    for column in ("", "settings", "numbers of a row", "P@1, P@3, P@5 held out", "on the test rows", "seconds"):
        table.add_column(column)
    for name, one in found.items():
        both = (" ".join(f"{value:.1f}" for value in one[side]) for side in ("validation", "test"))
        table.add_row(name, " ".join(one["settings"]), str(one["dimension"]), *both, f"{one['seconds']:.1f}")
    Console(width=170).print(table)
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seeds", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.data is None:
        print(write_result("snnk", {"machine": describe(), **theory(given.seeds, given.bundle)}))
        return
    found = real(given.data.resolve())
    print(write_result(f"snnk_{given.data.name}", {"machine": describe(), "runs": found}))


if __name__ == "__main__":
    main()
