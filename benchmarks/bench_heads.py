"""Free-label heads, SVMs and Z-loss, beside the decoupled softmax on the same features; updates, codes and tuned queries.

python benchmarks/bench_heads.py --data FOLDER            # P@k on MiniLM's features, options chosen on rows held out
python benchmarks/bench_heads.py --only updates codes     # the time of an update by Z-loss, and codes without text; no data
python benchmarks/bench_heads.py --only tuning --bundle RUN --data FOLDER   # a bundle's queries tuned, its labels left alone
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_result
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from data import open_format
from data.validation import split_by_labels
from dexml.bundle import Bundle
from dexml.heads import HEADS
from dexml.heads.equiangular import code_book, largest, welch
from dexml.heads.factored import FactoredHead
from dexml.kernels import choose
from dexml.losses.z_loss import ZLoss
from dexml.metrics import precision_at
from dexml.model import DualEncoder
from dexml.towers.linear import with_one
from dexml.types import LabelTable, Positives, Split
from training.config import Config, settle
from training.heads import Base, fitted, select
from training.run import Progress, Run

CUTOFFS = (1, 3, 5)
HINGES: tuple[dict[str, float], ...] = ({}, {"boundary": 0.3}, {"positive_weight": 1.0})
Data = tuple[LabelTable, Split, Split]


def precision(queries: Tensor, rows: Tensor, truth: Positives) -> list[float]:
    """Return P@1, P@3 and P@5 in percent of the best products."""
    kernels = choose()
    ids = kernels.scan(queries, kernels.prepare(rows, copy="none"), 5, 1.0).ids.numpy()
    return [round(precision_at(ids, truth, k), 2) for k in CUTOFFS]


def config_of(folder: Path, **sections: Any) -> Config:
    """Return the config of a run over MiniLM's frozen features, with a free vector for each label."""
    given = {
        "out": Path(tempfile.mkdtemp()),
        "data": {"path": folder},
        "encoder": {"name": "transformer"},
        "tower": {"name": "identity"},
    }
    return Config.model_validate({**given, **sections})


def trained(config: Config, data: Data) -> tuple[Run, float]:
    """Return a run trained on all rows for as many epochs as suit the rows held out, and their best P@1 + P@3 + P@5."""
    labels, train, _ = data
    config, _ = settle(config, len(train), [*train.texts, *labels.texts])
    rest, held = split_by_labels(train.positives, config.validation.fraction, config.seed, config.validation.max_rows)
    watched = Run(config, labels, train.take(rest), train.take(held))
    best = 0.0

    def see(now: Progress) -> None:
        nonlocal best
        best = max(best, (now.precision_1 or 0) + (now.precision_3 or 0) + (now.precision_5 or 0))

    watched.go(see)
    whole = Run(config, labels, train, None, 2)
    whole.stop_after = watched.best_epoch if watched.stopped_early else None
    whole.go(lambda now: None)
    return whole, best


def heads(folder: Path, data: Data) -> list[dict[str, Any]]:
    """Measure every head on the test rows; each option is chosen on training rows held out."""
    labels, train, test = data
    table: list[dict[str, Any]] = []

    def add(name: str, figures: list[float], start: float, options: Any) -> None:
        seconds = round(time.perf_counter() - start, 1)
        table.append({"head": name, **dict(zip((f"P@{k}" for k in CUTOFFS), figures, strict=True)), "seconds": seconds})
        table[-1]["options"] = options
        print(f"{name:<36}" + "".join(f"{value:8.2f}" for value in figures) + f"{seconds:9.1f} s  {options}", flush=True)

    print(f"{'on the test rows':<36}" + "".join(f"{f'P@{k}':>8}" for k in CUTOFFS))
    start = time.perf_counter()
    model = DualEncoder.make("transformer", {}, "identity", {}, [])
    rows, texts, asked = (
        model.tower.queries(model.encoder.encode_many(of)).detach() for of in (train.texts, labels.texts, test.texts)
    )
    add("label texts alone", precision(asked, texts, test.positives), start, {})
    start = time.perf_counter()
    run, _ = trained(config_of(folder), data)
    add("decoupled softmax", precision(asked, run.embeddings(quick=True), test.positives), start, run.config.loss.options)
    start, best = time.perf_counter(), (-1.0, run)
    for options in HINGES:
        run, held = trained(config_of(folder, loss={"name": "squared_hinge", **options}), data)
        best = max(best, (held, run), key=lambda found: found[0])
    run = best[1]
    figures = precision(asked, run.embeddings(quick=True), test.positives)
    add("squared hinge, trained by gradient", figures, start, run.config.loss.options)
    base = Base(with_one(rows), texts, train.positives)
    for name in HEADS:
        start = time.perf_counter()
        rest, held_out = split_by_labels(train.positives, 0.1, 0, 500)
        chosen = select(base.take(rest), base.take(held_out), name, {}, lambda said: print(f"    {said}", flush=True))
        *_, (weights, seen) = fitted(base, name, chosen.options, chosen.stage)
        figures = precision(with_one(asked), base.of_all(weights, seen, chosen.scale), test.positives)
        add(f"{name}, a head", figures, start, {**chosen.options, "stage": chosen.stage})
    return table


def updates(sizes: Sequence[int], dimension: int, batch: int, steps: int) -> list[dict[str, Any]]:
    """Time an update of Z-loss with the factored layer, and of the same on all of W, in float64 on one thread."""
    torch.set_num_threads(1)
    loss = ZLoss(temperature=1.0)
    table: list[dict[str, Any]] = []
    print(f"{'labels':>10}{'factored ms':>14}{'with upkeep ms':>16}{'dense ms':>12}")
    for count in sizes:
        made, random = torch.Generator().manual_seed(0), np.random.default_rng(0)
        weights = torch.randn(count, dimension, generator=made, dtype=torch.float64) * 0.1
        head = FactoredHead(weights, loss)
        given = [
            (
                torch.randn(batch, dimension, generator=made, dtype=torch.float64),
                Positives.from_rows(random.integers(count, size=(batch, 5)).tolist(), count),
            )
            for _ in range(steps)
        ]
        factored = [_seconds(partial(head.step, rows, positives, 1.0)) for rows, positives in given]
        few = given[: max(3, 1_000_000 // count)]
        whole = [_seconds(partial(_dense, weights, loss, rows, positives)) for rows, positives in few]
        row = {"labels": count, "factored_ms": np.median(factored) * 1e3, "mean_ms": np.mean(factored) * 1e3}
        table.append({**row, "dense_ms": np.median(whole) * 1e3})
        print(f"{count:>10,}{row['factored_ms']:>14.2f}{row['mean_ms']:>16.2f}{table[-1]['dense_ms']:>12.1f}", flush=True)
    first, last = table[0], table[-1]
    said = [f"{way} {last[f'{way}_ms'] / first[f'{way}_ms']:.2f}" for way in ("factored", "dense")]
    print(f"ratio of {last['labels']:,} labels to {first['labels']:,}: {', '.join(said)}")
    return table


def codes() -> dict[str, Any]:
    """Measure how far apart codes come, and classifiers of 400 classes behind fixed, learned and random rows."""
    books, classifiers = [], []  # type: list[dict[str, Any]], list[dict[str, Any]]
    print(f"{'codes':>8}{'D':>6}{'Welch':>9}{'random':>9}{'codes':>9}{'ratio':>8}{'seconds':>9}")
    for count, dimension in ((300, 200), (400, 100), (1000, 128), (2000, 64), (3000, 384)):
        start = time.perf_counter()
        found = largest(code_book(count, dimension))
        seconds = time.perf_counter() - start
        by_chance, bound = largest(code_book(count, dimension, steps=0)), welch(count, dimension)
        books.append({"codes": count, "dimension": dimension, "welch": bound, "random": by_chance, "found": found})
        books[-1]["seconds"] = seconds
        print(f"{count:>8}{dimension:>6}{bound:9.4f}{by_chance:9.4f}{found:9.4f}{found / bound:8.2f}{seconds:9.1f}", flush=True)
    print(f"{'rows a class':>13}{'noise':>7}{'fixed codes':>13}{'learned':>9}{'random':>8}")
    for each, noise in ((10, 0.6), (10, 0.8), (20, 1.0), (10, 1.0), (10, 1.3)):
        fixed, learned, random = (_accuracy(each, noise, way) for way in ("codes", "learned", "random"))
        classifiers.append({"rows": each, "noise": noise, "codes": fixed, "learned": learned, "random": random})
        print(f"{each:>13}{noise:7.1f}{fixed:13.3f}{learned:9.3f}{random:8.3f}", flush=True)
    return {"books": books, "classifiers": classifiers}


def tuning(bundle: Path, folder: Path, data: Data) -> list[dict[str, Any]]:
    """Tune the queries of a bundle on the rows of `folder`, by two losses, its labels left alone."""
    labels, _, test = data
    opened = Bundle.open(bundle)
    places = torch.tensor([opened.labels.ids.index(label) for label in labels.ids])
    before = precision(opened.model().embed_queries(test.texts)[0], opened.embeddings[places], test.positives)
    table: list[dict[str, Any]] = [{"queries": "as they are", "figures": before}]
    print(f"{'as they are':<28}{before}", flush=True)
    for loss in ("z_loss", "decoupled_softmax"):
        settings: dict[str, Any] = {"labels": {"rows": "bundle", "bundle": bundle}, "loss": {"name": loss}}
        run, _ = trained(config_of(folder, **settings), data)
        steps = [_seconds(partial(run.method.backward, np.arange(run.batches.size))) for _ in range(10)]
        figures = precision(run.query_rows(test.texts), run.embeddings(), test.positives)
        table.append({"queries": loss, "figures": figures, "step_ms": np.median(steps) * 1e3})
        print(f"{f'tuned by {loss}':<28}{figures}  {np.median(steps) * 1e3:.1f} ms a step", flush=True)
    return table


def _accuracy(each: int, noise: float, way: str) -> float:
    """Return a classifier's accuracy: 64 features, 400 classes of `each` training rows, two layers, rows `way` (400, 100)."""
    made = torch.Generator().manual_seed(0)
    classes = torch.arange(400).repeat(each * 3 // 2)
    inputs = torch.randn(400, 64, generator=made)[classes] + noise * torch.randn(len(classes), 64, generator=made)
    train, test = torch.arange(400 * each), torch.arange(400 * each, len(classes))
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 100))
    rows = code_book(400, 100, steps=200 if way == "codes" else 0).requires_grad_(way == "learned")
    optimizer = torch.optim.Adam([*network.parameters(), *([rows] if rows.requires_grad else [])], lr=3e-3)
    epochs = 25
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * each)
    for _ in range(epochs):
        for some in torch.randperm(len(train)).split(400):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            scores = normalize(network(inputs[some]), dim=1) @ normalize(rows, dim=1).T / 0.15
            cross_entropy(scores, classes[some]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        best = (network(inputs[test]) @ normalize(rows, dim=1).T).argmax(dim=1)
    return float((best == classes[test]).double().mean())


def _dense(weights: Tensor, loss: ZLoss, rows: Tensor, positives: Positives) -> None:
    """Take a step on all of `weights`, by the same loss."""
    given = weights.detach().requires_grad_()
    loss(rows, given, positives).backward()  # type: ignore[no-untyped-call]
    weights -= given.grad if given.grad is not None else 0


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Measure what is asked for, print tables and write JSON; parts that were measured before are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--only", nargs="+", choices=["heads", "updates", "codes", "tuning"], default=["heads"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    given = parser.parse_args()
    if {"heads", "tuning"} & set(given.only) and given.data is None:
        parser.error("--data is needed")
    place = Path(os.environ.get("OUT") or Path(__file__).parent / "results") / "heads.json"
    result: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
    if given.data is not None:
        files = open_format(given.data)
        data = files.labels(), files.read("train"), files.read("test")
    for part in given.only:
        if part == "heads":
            found: Any = heads(given.data, data)
        elif part == "updates":
            found = updates(given.sizes, 128, 32, 100)
        elif part == "codes":
            found = codes()
        else:
            found = tuning(given.bundle, given.data, data)
        result[part] = {"machine": describe(), "data": str(given.data), "table": found}
        print(f"written to {write_result('heads', result)}")


if __name__ == "__main__":
    main()
