"""A bundle measured through the path that serves it: the retriever answers, pure functions count."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dexml import metrics
from dexml.errors import InputError
from dexml.types import Float32Array, Int64Array, LabelTable, Positives, Split
from index.retriever import Normalize, Retriever

BATCH = 64  # queries at a time, as the service batches them
DEPTH = 100  # R@100 is the deepest figure


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures in percent, the answers with their scores (N, 100), and what they cost.

    `probabilities` (N, 100) are in the sense of each normaliser that was asked for, NaN where an answer is missing; `counts`
    and `weights` (L) are each label's training rows and inverse propensity.
    """

    figures: dict[str, float]
    ranked: Int64Array
    scores: Float32Array
    probabilities: Mapping[Normalize, Float32Array]
    counts: Int64Array
    weights: metrics.Float64Array
    seconds: dict[str, float]
    sizes: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return figures, seconds and sizes in one flat document."""
        return {**self.figures, "seconds": self.seconds, "sizes": self.sizes}


def evaluate(
    retriever: Retriever,
    labels: LabelTable,
    split: Split,
    propensity: tuple[float, float],
    report: Callable[[int], None],
    normalizers: Sequence[Normalize] = ("topk",),
) -> Evaluation:
    """Return the figures of `split`; excluded pairs leave the answers before the top-k. `report` gets the rows done.

    What is timed is a search with the first of the `normalizers`; the others are asked for once more.

    Labels that were added to the bundle since it was trained take up places in the answers, and are no hits.
    """
    numbers = _numbers(labels, retriever)
    if len(split) == 0:
        raise InputError("data: the split has no rows")
    excluded = split.excluded
    spare = int(np.diff(excluded.indptr).max(initial=0)) if excluded is not None else 0
    ranked = np.full((len(split), DEPTH), -1, dtype=np.int64)
    scores = np.full((len(split), DEPTH), -np.inf, dtype=np.float32)
    probabilities = {name: np.full((len(split), DEPTH), np.nan, dtype=np.float32) for name in normalizers}
    stages: dict[str, float] = {}
    retriever.search(split.texts[:1], DEPTH, normalize=normalizers[0])  # what is compiled at its first use is not measured
    total = 0.0
    for first in range(0, len(split), BATCH):
        texts = split.texts[first : first + BATCH]
        began = time.perf_counter()
        found = retriever.search(texts, DEPTH + spare, normalize=normalizers[0])
        total += time.perf_counter() - began
        rows = found.topk.ids.numpy()
        given = [np.where(rows < 0, -1, numbers[rows]), found.topk.scores.numpy()]
        for name in normalizers:
            again = found if name == normalizers[0] else retriever.search(texts, DEPTH + spare, normalize=name)
            assert np.array_equal(again.topk.ids.numpy(), rows), "a normaliser changes no order"
            of_name = again.probabilities()
            given.append(np.full(rows.shape, np.nan) if of_name is None else np.where(rows < 0, np.nan, of_name.numpy()))
        if excluded is not None:
            given = _without(given, excluded.take(np.arange(first, first + len(texts))))
        width = min(DEPTH, rows.shape[1])
        kept: list[Any] = [ranked, scores, *probabilities.values()]
        for into, values in zip(kept, given, strict=True):
            into[first : first + len(texts), :width] = values[:, :width]
        for stage, spent in found.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + spent
        report(first + len(texts))
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
    return Evaluation(figures, ranked, scores, probabilities, counts, weights, seconds, sizes)


def _numbers(of_data: LabelTable, retriever: Retriever) -> Int64Array:
    """Return the data set's number of each row of the retriever's labels, −1 for those that it does not have.

    Raises InputError unless a bundle as it was trained numbers its labels as the data set does, and unless one that has changed
    since still has most of them.
    """
    labels, bundle = retriever.labels, retriever.bundle
    if bundle.manifest.parent is None and retriever.index.untouched:
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


def _without(given: Sequence[Any], excluded: Positives) -> list[Any]:
    """Return label numbers, scores and probabilities (B, K) without excluded labels, the rest of each row moved up.

    They are padded with −1, −inf and NaN.
    """
    gone = metrics.hits(given[0], excluded)
    order = np.argsort(gone, axis=1, kind="stable")
    missing = (-1, -np.inf, *(np.nan for _ in given[2:]))
    return [
        np.take_along_axis(np.where(gone, none, values), order, axis=1) for values, none in zip(given, missing, strict=True)
    ]
