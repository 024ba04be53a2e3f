"""A bundle measured through the path that serves it: the retriever answers, pure functions count."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dexml import metrics
from dexml.errors import InputError
from dexml.types import Int64Array, Positives, Split
from index.retriever import Retriever

BATCH = 64  # queries at a time, as the service batches them
DEPTH = 100  # R@100 is the deepest figure


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures in percent, the answers int64 (N, 100), and what they cost."""

    figures: dict[str, float]
    ranked: Int64Array
    seconds: dict[str, float]
    sizes: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return figures, seconds and sizes in one flat document."""
        return {**self.figures, "seconds": self.seconds, "sizes": self.sizes}


def evaluate(retriever: Retriever, split: Split, propensity: tuple[float, float], report: Callable[[int], None]) -> Evaluation:
    """Return the figures of `split`; excluded pairs leave the answers before the top-k. `report` gets the rows done."""
    if split.positives.num_labels != len(retriever.labels):
        raise InputError(
            f"data: {split.positives.num_labels} labels, but the bundle was trained on {len(retriever.labels)}; "
            "evaluate on the data set it was made from"
        )
    if len(split) == 0:
        raise InputError("data: the split has no rows")
    excluded = split.excluded
    spare = int(np.diff(excluded.indptr).max(initial=0)) if excluded is not None else 0
    ranked = np.full((len(split), DEPTH), -1, dtype=np.int64)
    stages: dict[str, float] = {}
    start = time.perf_counter()
    for first in range(0, len(split), BATCH):
        texts = split.texts[first : first + BATCH]
        found = retriever.search(texts, DEPTH + spare)
        ids = found.topk.ids.numpy()
        if excluded is not None:
            ids = _without(ids, excluded.take(np.arange(first, first + len(texts))))
        ranked[first : first + len(texts)] = ids[:, :DEPTH]
        for stage, spent in found.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + spent
        report(first + len(texts))
    total = time.perf_counter() - start
    bundle = retriever.bundle
    weights = metrics.propensity_weights(bundle.train_counts, bundle.manifest["data"]["train_rows"], *propensity)
    sizes = {
        "queries": len(split),
        "labels": len(retriever.labels),
        "dimension": retriever.dimension,
        "bundle_bytes": sum(entry["size"] for entry in bundle.manifest["files"].values()),
    }
    seconds = {"total": total, **stages}
    return Evaluation(dict(metrics.table(ranked, split.positives, weights)), ranked, seconds, sizes)


def _without(ids: Int64Array, excluded: Positives) -> Int64Array:
    """Return each row without its excluded labels, the rest moved up, padded with −1."""
    gone = metrics.hits(ids, excluded)
    order = torch.from_numpy(gone.astype(np.uint8)).argsort(dim=1, stable=True).numpy()
    kept = np.where(gone, -1, ids)
    return np.take_along_axis(kept, order, axis=1)
