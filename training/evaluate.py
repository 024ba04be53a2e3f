"""A bundle measured through the path that serves it: the retriever answers, pure functions count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dexml import metrics
from dexml.errors import InputError
from dexml.types import Float32Array, Int64Array, LabelTable, Positives, Split
from index.retriever import Retriever
from training.calibration import Measured, measure
from training.engines import Engine
from training.engines.local import LocalEngine

BATCH = 64  # queries at a time, as the service batches them
DEPTH = 100  # R@100 is the deepest figure
FIGURES = ("P@1", "P@3", "P@5", "nDCG@5", "R@100", "PSP@1", "PSP@5")
CUTOFFS = (1, 3, 5, DEPTH)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures in percent, the answers with their scores (N, 100) where they were kept, and what they cost.

    `calibration` has ECE, Brier score and log loss of the answers' probabilities by way, where the bundle is calibrated;
    `probabilities` they themselves, there and where they were asked for. `counts` and `weights` (L) are each label's training
    rows and inverse propensity.
    """

    figures: dict[str, float]
    ranked: Int64Array
    scores: Float32Array
    seconds: dict[str, float]
    sizes: dict[str, int]
    counts: Int64Array
    weights: metrics.Float64Array
    probabilities: Measured | None = None
    calibration: dict[str, dict[str, float]] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return figures, seconds and sizes in one flat document, and the calibration where there is one."""
        calibration = {} if self.calibration is None else {"calibration": self.calibration}
        return {**self.figures, "seconds": self.seconds, "sizes": self.sizes, **calibration}


def evaluate(
    retriever: Retriever,
    labels: LabelTable,
    split: Split,
    propensity: tuple[float, float],
    report: Callable[[int], None],
    engine: Engine | None = None,
    *,
    index: str | None = None,
    keep: bool = True,
    probabilities: bool = False,
) -> Evaluation:
    """Return the figures of `split`; excluded pairs leave the answers before the top-k. `report` gets the rows done.

    Blocks of rows are answered by the `engine`, this process by default, and counted as they come: the figures are the same to
    the last bit whoever answers in which order. `index` is the one that the retriever was opened with. Without `keep` the
    answers are let go once they are counted. Labels that were added to the bundle since it was trained take up places in the
    answers, and are no hits.
    """
    numbers = numbers_of(labels, retriever)
    if len(split) == 0:
        raise InputError("data: the split has no rows")
    bundle, excluded = retriever.bundle, split.excluded
    spare = int(np.diff(excluded.indptr).max(initial=0)) if excluded is not None else 0
    counts = np.zeros(len(labels), dtype=np.int64)
    counts[numbers[numbers >= 0]] = retriever.labels.train_counts(np.flatnonzero(numbers >= 0))
    weights = metrics.propensity_weights(counts, bundle.manifest.data.train_rows, *propensity)
    tally = metrics.Tally(len(labels), weights, CUTOFFS)
    kept = len(split) if keep else 0
    ranked = np.full((kept, DEPTH), -1, dtype=np.int64)
    scores = np.full((kept, DEPTH), -np.inf, dtype=np.float32)
    stages: dict[str, float] = {}
    engine, make = engine or LocalEngine(), partial(Answerer, retriever, numbers, spare)
    if not isinstance(engine, LocalEngine):
        make = partial(Answerer.open, retriever.store.root.absolute(), index, bundle.manifest.sha256, numbers, spare)
    else:
        retriever.search(split.texts[:1], DEPTH)  # what is compiled at its first use is not measured
    start, done = time.perf_counter(), 0
    for answer in engine.run(make, _blocks(split)):
        rows = slice(answer.first, answer.first + len(answer.ranked))
        tally.add(answer.ranked, split.positives.take(np.arange(rows.start, rows.stop)))
        if keep:
            width = answer.ranked.shape[1]
            ranked[rows, :width], scores[rows, :width] = answer.ranked, answer.scores
        for stage, spent in answer.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + spent
        done += len(answer.ranked)
        report(done)
    total = time.perf_counter() - start
    of_all = tally.figures()
    sizes = {
        "queries": len(split),
        "labels": len(retriever.labels),
        "dimension": retriever.dimension,
        "bundle_bytes": sum(entry.size for entry in bundle.manifest.files.values()),
    }
    seconds = {"total": total, **stages}
    asked = probabilities or bundle.calibration is not None
    measured = measure(retriever, split, numbers) if asked else None
    calibration = None if bundle.calibration is None or measured is None else measured.figures()
    figures = {name: of_all[name] for name in FIGURES}
    return Evaluation(figures, ranked, scores, seconds, sizes, counts, weights, measured, calibration)


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of a split from `first` on: their `texts` (n) and the pairs that leave the answers (n, L)."""

    first: int
    texts: tuple[str, ...]
    excluded: Positives | None


@dataclass(frozen=True, eq=False)
class Answer:
    """The best labels of a block's rows by the data set's numbers (n, K ≤ 100), their scores, and the seconds by stage."""

    first: int
    ranked: Int64Array
    scores: Float32Array
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Answerer:
    """What a worker of any engine does with a block; `numbers` (L) are the data set's of the index' rows."""

    retriever: Retriever
    numbers: Int64Array
    spare: int

    def __call__(self, block: Block) -> Answer:
        """Return the answers to a block."""
        found = self.retriever.search(block.texts, DEPTH + self.spare)
        rows, scores = found.topk.ids.numpy(), found.topk.scores.numpy()
        ids = np.where(rows < 0, -1, self.numbers[rows])
        if block.excluded is not None:
            ids, scores = _without(ids, scores, block.excluded)
        return Answer(block.first, ids[:, :DEPTH], scores[:, :DEPTH], found.seconds)

    @staticmethod
    def open(root: Path, index: str | None, sha256: str, numbers: Int64Array, spare: int) -> Answerer:
        """Return one over the bundle at `root`. Raises InputError where this node sees another version."""
        retriever = Retriever.open(root, index)
        if retriever.bundle.manifest.sha256 != sha256 or len(retriever.labels.ids) != len(numbers):
            raise InputError(
                f"bundle: {root} is another on this node, or has changed; it must be one folder, shared by all nodes"
            )
        return Answerer(retriever, numbers, spare)


def _blocks(split: Split) -> Iterator[Block]:
    for first in range(0, len(split), BATCH):
        rows = np.arange(first, min(first + BATCH, len(split)))
        excluded = None if split.excluded is None else split.excluded.take(rows)
        yield Block(first, split.texts[first : first + BATCH], excluded)


def numbers_of(of_data: LabelTable, retriever: Retriever) -> Int64Array:
    """Return the data set's number of each row of the retriever's labels, −1 for those that it does not have.

    Raises InputError unless a bundle as it was trained numbers its labels as the data set does, and unless one that has changed
    since still has most of them.
    """
    labels, bundle = retriever.labels, retriever.bundle
    if bundle.manifest.parent is None and retriever.index.stray == 0:
        _same_labels(of_data, bundle.labels)
        return np.arange(len(of_data), dtype=np.int64)
    known = {label: number for number, label in enumerate(of_data.ids)}
    numbers = np.full(len(labels.ids), -1, dtype=np.int64)
    for row in labels.live().tolist():
        numbers[row] = known.get(labels.ids[row], -1)
    found = int((numbers >= 0).sum())
    if 2 * found < len(of_data):
        raise InputError(
            f"data: the bundle has {found} of its {len(of_data)} labels; evaluate on the data set it was made from"
        )
    return numbers


def _same_labels(of_data: LabelTable, of_bundle: LabelTable) -> None:
    """Raise InputError unless the data set numbers its labels as the bundle does: the metrics compare numbers."""
    if len(of_data) != len(of_bundle):
        raise InputError(
            f"data: {len(of_data)} labels, but the bundle was trained on {len(of_bundle)}; "
            "evaluate on the data set it was made from"
        )
    for number, (one, other) in enumerate(zip(of_data.ids, of_bundle.ids, strict=True)):
        if one != other:
            raise InputError(
                f"data: label {number} is {one!r}, but the bundle's is {other!r}; evaluate on the data set it was made from"
            )


def _without(ids: Int64Array, scores: Float32Array, excluded: Positives) -> tuple[Int64Array, Float32Array]:
    """Return each row without its excluded labels, the rest moved up, padded with −1 and −inf."""
    gone = metrics.hits(ids, excluded)
    order = np.argsort(gone, axis=1, kind="stable")
    kept, of_kept = np.where(gone, -1, ids), np.where(gone, np.float32(-np.inf), scores)
    return np.take_along_axis(kept, order, axis=1), np.take_along_axis(of_kept, order, axis=1)
