"""What a student of fewer dimensions or bits loses to its teacher: plain training, and every distillation beside it.

usage: python benchmarks/bench_distillation.py FOLDER [--seeds 0 1 2] [--students small compact …] [--ways nkd …]
The teacher is cpu.toml's recipe, in 384 dimensions. A way's options are chosen for the first student, on validation rows, with
a teacher that has not seen them; then teacher and students are trained on all training rows, by each seed, and measured on
test. Prints P@1, P@5 and R@100, the mean of the seeds; writes benchmarks/results/distillation_NAME.json. It takes half an hour.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_result
from rich.console import Console
from rich.table import Table
from torch import Tensor

from data import open_format
from dexml import metrics
from dexml.bundle import Bundle
from dexml.config import load
from dexml.kernels import choose
from dexml.types import Features, LabelTable, Split
from training.config import Config, settle
from training.distill import DistillConfig, DistilledRun, Teacher, resolve
from training.export import export
from training.run import Progress, Run, hold_out

ROOT = Path(__file__).resolve().parents[1]
ALL = 10**6
STUDENTS: dict[str, list[str]] = {
    "small": ["tower.name=compact", "tower.dimension=32"],
    "small, 4 bits": ["tower.name=compact", "tower.dimension=32", "distill.bits=4"],
    "small, 3 bits": ["tower.name=compact", "tower.dimension=32", "distill.bits=3"],
    "compact": ["tower.name=compact", "tower.dimension=96"],
    "8 bits": ["distill.bits=8"],
    "4 bits": ["distill.bits=4"],
    "2 bits": ["distill.bits=2"],
}
SMALL = list(STUDENTS)[:4]
Grid = Sequence[Sequence[str]]
RATES: Grid = [["training.rate_scale=1.0", "training.rate_scale=0.3"]]
HEAT: Grid = [*RATES, ["distillation.temperature=1.0", "distillation.temperature=2.0"]]
UNTRAINED, AFTERWARDS = "no training", "rounded afterwards"
WAYS: dict[str, tuple[list[str], Grid]] = {  # settings, and what is chosen from, one of each list
    "the teacher, projected and rounded": ([UNTRAINED], []),
    "plain, from nothing": (["distill.soft=0", "distill.start=fresh"], RATES),
    "plain": (["distill.soft=0"], RATES),
    "plain, rounded afterwards": (["distill.soft=0", AFTERWARDS], RATES),
    "nkd": (["distillation.name=nkd"], HEAT),
    "forward KL (kd)": (["distillation.name=topkld", f"distillation.top={ALL}"], HEAT),
    "reverse KL": (["distillation.name=topkld", "distillation.top=0"], HEAT),
    "topkld": (["distillation.name=topkld", "distillation.top=10"], HEAT),
    "kl_top": (["distillation.name=kl_top", "distillation.top=50"], HEAT),
    "uskd": (["distillation.name=uskd", "distill.hard=0"], [*RATES, ["distillation.beta=0.1", "distillation.beta=1.0"]]),
}


def ignore(progress: Progress) -> None:
    """Say nothing."""


def teach(folder: Path, labels: LabelTable, train: Split, watched: Split | None, epoch: int | None) -> tuple[Bundle, int]:
    """Return a teacher's bundle and its best epoch: watched, or trained on all rows up to `epoch`."""
    out = tempfile.mkdtemp(prefix="teacher")
    read = load(Config, ROOT / "training" / "configs" / "cpu.toml", [f"data.path={folder}", f"out={out}"])
    settled, _ = settle(read, len(train), [*train.texts, *labels.texts])
    run = Run(settled, labels, train, watched)
    run.stop_after = epoch
    run.go(ignore)
    export(run, train, finished=True)
    return Bundle.open(Path(out)), run.best_epoch


def remember_features(teacher: Teacher) -> Teacher:
    """Let the teacher's encoder read each list of texts once, whichever student asks."""
    encoder = teacher.model.encoder
    read = cache(lambda texts: type(encoder).encode_many(encoder, texts))

    def encode_many(texts: Sequence[str]) -> Features:
        found: Features = read(tuple(texts))
        return found

    encoder.encode_many = encode_many  # type: ignore[method-assign]
    return teacher


def student(
    folder: Path, teacher: Teacher, settings: Sequence[str], labels: LabelTable, train: Split, watched: Split | None
) -> DistilledRun:
    """Return a run of a student, at its start; `training.epochs=0` is one that is left there."""
    fixed = [f"data.path={folder}", f"out={tempfile.gettempdir()}/student", f"distill.teacher={teacher.bundle.root.parent}"]
    kind = "distill" if "tower.name=compact" in settings else "quantize"
    read = load(DistillConfig, ROOT / "training" / "configs" / f"{kind}.toml", [*fixed, *settings])
    config, _ = resolve(read)
    settled, _ = settle(config, len(train))
    assert isinstance(settled, DistillConfig)
    return DistilledRun(settled, labels, train, watched, teacher=teacher)


def answers(rows: Tensor, queries: Tensor, split: Split) -> dict[str, float]:
    """Return the figures of unit label rows (L, D) for unit queries (N, D), in percent."""
    kernels = choose()
    ids = kernels.scan(queries, kernels.prepare(rows, copy="none"), 100, 1.0).ids.numpy()
    return {
        "P@1": metrics.precision_at(ids, split.positives, 1),
        "P@5": metrics.precision_at(ids, split.positives, 5),
        "R@100": metrics.recall_at(ids, split.positives, 100),
    }


def measured(
    folder: Path,
    teacher: Teacher,
    settings: Sequence[str],
    labels: LabelTable,
    train: Split,
    watched: Split | None,
    asked: Split,
    epoch: int | None = None,
) -> tuple[dict[str, float], int]:
    """Return a student's figures on `asked`, and the epoch whose weights they are: the best watched, or `epoch`."""
    own = [setting for setting in settings if setting not in (UNTRAINED, AFTERWARDS)]
    run = student(folder, teacher, own, labels, train, watched)
    run.stop_after = epoch
    bits = run.model.tower.bits
    if AFTERWARDS in settings:
        run.model.tower.bits = None
    if UNTRAINED not in settings:
        run.go(ignore)
    run.model.tower.bits = bits
    return answers(run.embeddings(quick=True), run.query_rows(asked.texts), asked), run.best_epoch


def sizes(run: DistilledRun) -> dict[str, float]:
    """Return how many numbers the tower and the label rows have, and how many bits they take."""
    numbers = sum(value.numel() for name, value in run.model.tower.named_parameters() if name != "free")
    numbers += len(run.labels) * run.model.dimension
    return {"numbers": numbers, "bits": numbers * (run.config.distill.bits or 32)}


def main() -> None:
    """Choose on validation rows, train on all, measure on test, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--students", nargs="+", default=SMALL, choices=list(STUDENTS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    given = parser.parse_args()
    folder, began = given.folder.resolve(), time.monotonic()
    files = open_format(folder)
    labels, train, test = files.labels(), files.read("train"), files.read("test")
    base = load(Config, ROOT / "training" / "configs" / "cpu.toml", [f"data.path={folder}", "validation.fraction=0.2"])
    kept, watched = hold_out(base, train)
    assert watched is not None
    bundle, epoch = teach(folder, labels, kept, watched, None)
    chooser = remember_features(Teacher(bundle, bundle.model(), shared=True))
    bundle, _ = teach(folder, labels, train, None, epoch)
    teacher = remember_features(Teacher(bundle, bundle.model(), shared=True))
    of_teacher = answers(bundle.embeddings, teacher.model.embed_queries(test.texts)[0], test)
    print(f"teacher: {of_teacher}, {time.monotonic() - began:.0f} s", flush=True)
    first, chosen = given.students[0], dict[str, tuple[list[str], dict[str, float], int]]()
    for way in given.ways:
        settings, choices = WAYS[way]
        for option in product(*choices):
            asked = [*STUDENTS[first], *settings, *option]
            figures, epoch = measured(folder, chooser, asked, labels, kept, watched, watched)
            if way not in chosen or _better(figures, chosen[way][1]):
                chosen[way] = list(option), figures, epoch
        print(f"chosen · {way}: {chosen[way]}, {time.monotonic() - began:.0f} s", flush=True)
    found: dict[str, Any] = {}
    for name in given.students:
        found[name] = {"sizes": sizes(student(folder, teacher, STUDENTS[name], labels, train, None)), "ways": {}}
        for way in given.ways:
            options, _, epoch = chosen[way]
            if WAYS[way][0][-1] == AFTERWARDS and "bits" not in name:
                continue
            asked = [*STUDENTS[name], *WAYS[way][0], *options]
            figures_of = [
                measured(folder, teacher, [*asked, f"seed={seed}"], labels, train, None, test, epoch or None)[0]
                for seed in given.seeds
            ]
            found[name]["ways"][way] = {"test": figures_of}
            means = {key: round(float(np.mean([one[key] for one in figures_of])), 2) for key in figures_of[0]}
            print(f"{name} · {way}: {means}, {time.monotonic() - began:.0f} s", flush=True)
    show(folder.name, of_teacher, found, given.seeds)
    names = ("options", "validation", "epoch")
    options_of = {way: dict(zip(names, choice, strict=True)) for way, choice in chosen.items()}
    document = {"machine": describe(), "seeds": given.seeds, "teacher": of_teacher, "chosen": options_of, "students": found}
    print(write_result(f"distillation_{folder.name}", document))


def _better(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one["P@1"] + one["P@5"] > other["P@1"] + other["P@5"]


def show(name: str, teacher: Mapping[str, float], found: Mapping[str, Any], seeds: Sequence[int]) -> None:
    """Print a table for each student."""
    for who, about in found.items():
        table = Table(title=f"{name}, {who}: percent on test, mean of seeds {list(seeds)}; to the teacher's P@1 in brackets")
        for column in ("", "P@1", "P@5", "±", "R@100"):
            table.add_column(column)
        table.add_row("teacher", *(f"{teacher[key]:.2f}" for key in ("P@1", "P@5")), "", f"{teacher['R@100']:.2f}")
        for way, line in about["ways"].items():
            of = {key: np.array([one[key] for one in line["test"]]) for key in line["test"][0]}
            table.add_row(
                way,
                f"{of['P@1'].mean():.2f} ({of['P@1'].mean() - teacher['P@1']:+.2f})",
                f"{of['P@5'].mean():.2f}",
                f"{of['P@5'].std():.2f}",
                f"{of['R@100'].mean():.2f}",
            )
        Console(width=140).print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
