"""A saved score file measured against a data set; no bundle is needed."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data import open_format
from data.format import Format
from data.scores import read_scores
from dexml import metrics
from dexml.errors import InputError
from dexml.types import Int64Array, LabelTable, Split
from training.record import answers_of

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, eq=False)
class Judge:
    """The rows that answers are measured on; `counts` (L) and `weights` (L) are of the training rows, None without any.

    `source` says where the rows are from.
    """

    labels: LabelTable
    split: Split
    counts: Int64Array | None
    weights: metrics.Float64Array | None
    propensity: tuple[float, float]
    source: str

    @staticmethod
    def of(folder: Path, split: str, propensity: tuple[float, float]) -> Judge:
        """Return what the data set in `folder` says."""
        files = open_format(folder)
        labels, rows = files.labels(), files.read(split)
        if len(rows) == 0:
            raise InputError(f"data: the split {split} has no rows")
        counts, number = _training(files)
        weights = None if counts is None else metrics.propensity_weights(counts, number, *propensity)
        return Judge(labels, rows, counts, weights, propensity, str(folder))

    def ranked(self, path: Path, k: int) -> Int64Array:
        """Return the k best labels of each row that the file `path` scores (N, k), −1 where there are fewer."""
        return self.answers(path, k)[0]

    def answers(self, path: Path, k: int) -> tuple[Int64Array, metrics.Float64Array]:
        """Return the k best labels of each row and their scores (N, k), −1 and −inf where there are fewer."""
        scores = read_scores(path, len(self.split), self.labels)
        ranked = metrics.top(scores, k, self.split.excluded)
        rows = np.arange(len(ranked), dtype=np.int64)
        keys = np.repeat(rows, np.diff(scores.indptr)) * len(self.labels) + scores.indices  # ascending
        there = ranked >= 0
        values = np.full(ranked.shape, -np.inf)
        values[there] = scores.data[np.searchsorted(keys, (rows[:, None] * len(self.labels) + ranked)[there])]
        return ranked, values

    def tally(self, path: Path) -> metrics.Tally:
        """Return the tally of the score file `path`."""
        scores = read_scores(path, len(self.split), self.labels)
        return metrics.measure(scores, self.split.positives, self.weights, excluded=self.split.excluded)

    def as_json(self, tally: metrics.Tally) -> dict[str, Any]:
        """Return figures, those by label frequency, and sizes in one document."""
        groups: dict[str, Any] = {}
        if self.counts is not None:
            groups["deciles"] = [group.as_json() for group in metrics.deciles(tally, self.counts)]
            groups["bands"] = [group.as_json() for group in metrics.bands(tally, self.counts)]
            groups["propensity"] = list(self.propensity)
        return {**tally.figures(), **groups, "sizes": {"queries": len(self.split), "labels": len(self.labels)}}


def propensity_of(text: str | None) -> tuple[float, float]:
    """Return (A, B) of "A,B" or of the name of a set of the XC repository; None is DEFAULT_PROPENSITY."""
    if text is None:
        return metrics.DEFAULT_PROPENSITY
    parts = text.split(",")
    if len(parts) == 1:
        return metrics.propensity_constants(text)
    try:
        a, b = (float(part) for part in parts)
    except ValueError:
        a = b = np.nan
    if not (np.isfinite([a, b]).all() and b > 0):
        raise InputError(f"--propensity: two numbers A,B with B above 0 or the name of a data set are needed, got {text!r}")
    return a, b


def files_of(given: str, split: str) -> list[Path]:
    """Return the score files of what is compared: a file, or a run or report folder that keeps its answers to `split`.

    A pattern is several. Raises InputError for a path or pattern without one.
    """
    paths = [Path(given)] if Path(given).exists() else [Path(path) for path in sorted(glob.glob(given))]
    if not paths:
        raise InputError(f"{given}: no such file or folder")
    found = []
    for path in paths:
        if path.is_file():
            found.append(path)
            continue
        places = (answers_of(path, split), answers_of(path.parent, split), path / f"{split}.npz")
        kept = next((file for file in places if file.is_file()), None)
        if kept is None:
            raise InputError(
                f"{path}: no answers to {split} are kept there; `dexml evaluate {path} --split {split}` keeps them"
            )
        found.append(kept)
    return found


def report(path: Path, split: str, judge: Judge, tally: metrics.Tally, console: Console) -> None:
    """Print figures by cutoff, and by label frequency."""
    from rich.markup import escape
    from rich.table import Table

    rows = f"{len(judge.split):,} rows, {len(judge.labels):,} labels"
    table = Table(title=f"{escape(str(path))} on {escape(split)} ({rows}), percent")
    table.add_column("@")
    for k in tally.cutoffs:
        table.add_column(f"{k}", justify="right")
    figures = tally.figures()
    for kind in dict.fromkeys(name.split("@")[0] for name in figures):
        table.add_row(kind, *[f"{figures[f'{kind}@{k}']:.2f}" for k in tally.cutoffs])
    console.print(table)
    if judge.counts is None:
        return
    for title, groups in (("decile", metrics.deciles(tally, judge.counts)), ("band", metrics.bands(tally, judge.counts))):
        console.print(_by_frequency(title, groups, tally.cutoffs))


def by_frequency(groups: Sequence[metrics.Group], cutoffs: Sequence[int]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the heads and rows of a table of labels by frequency, the first column without a head."""
    first, last = next((k for k in cutoffs if k >= 5), cutoffs[-1]), cutoffs[-1]
    heads = ("labels", "training rows each", "true here", f"part of P@{first}", f"recall@{first}", f"recall@{last}")
    rows: list[tuple[str, ...]] = []
    for group in groups:
        seen = f"{group.seen[0]:,} to {group.seen[1]:,}"
        of = (f"{group.part[first]:.2f}", f"{group.recall[first]:.2f}", f"{group.recall[last]:.2f}")
        rows.append((group.name, f"{group.labels:,}", seen, f"{group.true:,}", *of))
    return heads, rows


def _by_frequency(title: str, groups: Sequence[metrics.Group], cutoffs: Sequence[int]) -> Any:
    from rich.table import Table

    heads, rows = by_frequency(groups, cutoffs)
    table = Table()
    for name in (title, *heads):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _training(files: Format) -> tuple[Int64Array | None, int]:
    """Return how often training rows name each label, and how many rows there are."""
    if "train" not in files.splits():
        return None, 0
    positives = files.read("train").positives
    return (positives.counts(), len(positives)) if len(positives) else (None, 0)
