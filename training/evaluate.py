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

BATCH = 64  # queries at a time, as the service batches them
DEPTH = 100  # R@100 is the deepest figure


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures in percent, the answers with their scores (N, 100), and what they cost."""

    figures: dict[str, float]
    ranked: Int64Array
    scores: Float32Array
    seconds: dict[str, float]
    sizes: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return figures, seconds and sizes in one flat document."""
        return {**self.figures, "seconds": self.seconds, "sizes": self.sizes}


def evaluate(
    retriever: Retriever, labels: LabelTable, split: Split, propensity: tuple[float, float], report: Callable[[int], None]
) -> Evaluation:
    """Return the figures of `split`; excluded pairs leave the answers before the top-k. `report` gets the rows done."""
    _same_labels(labels, retriever.labels)
    if len(split) == 0:
        raise InputError("data: the split has no rows")
    excluded = split.excluded
    spare = int(np.diff(excluded.indptr).max(initial=0)) if excluded is not None else 0
    ranked = np.full((len(split), DEPTH), -1, dtype=np.int64)
    scores = np.full((len(split), DEPTH), -np.inf, dtype=np.float32)
    stages: dict[str, float] = {}
    start = time.perf_counter()
    for first in range(0, len(split), BATCH):
        texts = split.texts[first : first + BATCH]
        found = retriever.search(texts, DEPTH + spare)
        ids, of_ids = found.topk.ids.numpy(), found.topk.scores.numpy()
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
    weights = metrics.propensity_weights(bundle.train_counts, bundle.manifest.data.train_rows, *propensity)
    sizes = {
        "queries": len(split),
        "labels": len(retriever.labels),
        "dimension": retriever.dimension,
        "bundle_bytes": sum(entry.size for entry in bundle.manifest.files.values()),
    }
    seconds = {"total": total, **stages}
    return Evaluation(dict(metrics.table(ranked, split.positives, weights)), ranked, scores, seconds, sizes)


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
