"""A bundle measured through the path that serves it: the retriever answers, pure functions count."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dexml import metrics
from dexml.errors import InputError
from dexml.types import Float32Array, Int64Array, LabelTable, Positives, Split
from index.retriever import Retriever
from training.calibration import Measured, measure

BATCH = 64  # queries at a time, as the service batches them
DEPTH = 100  # R@100 is the deepest figure


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures in percent, the answers with their scores (N, 100), and what they cost.

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
    *,
    probabilities: bool = False,
) -> Evaluation:
    """Return the figures of `split`; excluded pairs leave the answers before the top-k. `report` gets the rows done.

    Labels that were added to the bundle since it was trained take up places in the answers, and are no hits.
    """
    numbers = numbers_of(labels, retriever)
    if len(split) == 0:
        raise InputError("data: the split has no rows")
    excluded = split.excluded
    spare = int(np.diff(excluded.indptr).max(initial=0)) if excluded is not None else 0
    ranked = np.full((len(split), DEPTH), -1, dtype=np.int64)
    scores = np.full((len(split), DEPTH), -np.inf, dtype=np.float32)
    stages: dict[str, float] = {}
    retriever.search(split.texts[:1], DEPTH)  # what is compiled at its first use is not measured
    start = time.perf_counter()
    for first in range(0, len(split), BATCH):
        texts = split.texts[first : first + BATCH]
        found = retriever.search(texts, DEPTH + spare)
        rows, of_ids = found.topk.ids.numpy(), found.topk.scores.numpy()
        ids = np.where(rows < 0, -1, numbers[rows])
        if excluded is not None:
            ids, of_ids = _without(ids, of_ids, excluded.take(np.arange(first, first + len(texts))))
        width = min(DEPTH, ids.shape[1])
        ranked[first : first + len(texts), :width] = ids[:, :width]
        scores[first : first + len(texts), :width] = of_ids[:, :width]
        for stage, spent in found.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + spent
        report(first + len(texts))
    total = time.perf_counter() - start
    bundle = retriever.bundle
    counts = np.zeros(len(labels), dtype=np.int64)
    counts[numbers[numbers >= 0]] = retriever.labels.train_counts(np.flatnonzero(numbers >= 0))
    weights = metrics.propensity_weights(counts, bundle.manifest.data.train_rows, *propensity)
    sizes = {
        "queries": len(split),
        "labels": len(retriever.labels),
        "dimension": retriever.dimension,
        "bundle_bytes": sum(entry.size for entry in bundle.manifest.files.values()),
    }
    seconds = {"total": total, **stages}
    figures = dict(metrics.table(ranked, split.positives, weights))
    asked = probabilities or bundle.calibration is not None
    measured = measure(retriever, split, numbers) if asked else None
    calibration = None if bundle.calibration is None or measured is None else measured.figures()
    return Evaluation(figures, ranked, scores, seconds, sizes, counts, weights, measured, calibration)


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
