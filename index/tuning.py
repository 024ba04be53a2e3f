"""Search parameters for a recall: FAISS's own exploration of each structure's settings, beside our exact scan."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dexml.device import import_faiss
from dexml.errors import InputError
from index import INDEXES

BATCH = 32  # queries at a time, as a busy service has them
OPTIONS = {"nprobe": "nprobe", "efSearch": "ef_search"}  # FAISS's parameters that an index row has as options


@dataclass(frozen=True)
class Point:
    """A setting that no other of its structure beats: its row in INDEXES with options, recall@k in [0, 1], queries a second."""

    name: str
    options: dict[str, Any]
    recall: float
    per_second: float

    @property
    def words(self) -> str:
        """The row and its options in words."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


def structures(labels: int) -> list[str]:
    """Return factory strings worth trying for that many labels: flat, quantized, inverted lists and a graph."""
    lists = 1 << round(np.log2(4 * np.sqrt(max(labels, 1))))
    while 39 * lists > labels:  # FAISS wants that many rows a list
        lists //= 2
    found = ["Flat", "SQ8", "HNSW32"]
    return [*found, f"IVF{lists},Flat", f"IVF{lists},SQ8"] if lists >= 8 else found


def explore(
    labels: Tensor, queries: Tensor, k: int, factories: Sequence[str], report: Callable[[str], None] = lambda what: None
) -> Iterator[list[Point]]:
    """Yield, for our scan and then for each structure, its settings from the quickest to the one of the highest recall.

    `labels` float32 (L, D), `queries` float32 (N, D); recall@k is the share of the true k best among the k found. FAISS
    explores on all queries at once; what it finds is then timed in batches of 32. Raises InputError for a factory it refuses.
    """
    faiss = import_faiss()
    report("exact")
    exact = INDEXES.build("exact", {})
    exact.build(labels)
    exact.warm()
    found = exact.search(queries, k, 1.0)
    yield [Point("exact", {}, 1.0, _per_second(lambda some: exact.search(some, k, 1.0), queries))]
    truth = np.ascontiguousarray(found.ids.numpy()), np.ascontiguousarray(found.scores.numpy())
    rows, asked = np.ascontiguousarray(labels.numpy()), np.ascontiguousarray(queries.numpy())
    for factory in factories:
        report(factory)
        INDEXES.build("faiss", {"factory": factory}).check(*labels.shape)
        index = faiss.index_factory(labels.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        index.add(rows)
        criterion = faiss.IntersectionCriterion(len(asked), k)
        criterion.set_groundtruth(truth[1], truth[0])
        space = faiss.ParameterSpace()
        space.verbose = 0
        space.initialize(index)
        explored = space.explore(index, asked, criterion)
        points = [explored.optimal_pts.at(place) for place in range(explored.optimal_pts.size())]
        made = []
        for point in points:
            if point.perf <= 0:
                continue
            space.set_index_parameters(index, point.key)
            settings = dict(part.split("=") for part in point.key.split(",") if part)
            options = {OPTIONS[key]: int(float(value)) for key, value in settings.items() if key in OPTIONS}
            if len(options) < len(settings):  # a parameter that our row has no option for: FAISS's default stands
                continue
            per_second = _per_second(lambda some: index.search(some.numpy(), k), queries)  # noqa: B023 — called here
            made.append(Point("faiss", {"factory": factory, **options}, float(point.perf), per_second))
        yield sorted(made, key=lambda point: point.recall)


def fastest(points: Sequence[Point], recall: float) -> Point:
    """Return the setting with the most queries a second among those that reach `recall`; the exact scan always does."""
    if not 0 < recall <= 1:
        raise InputError(f"recall must be above 0 and at most 1, got {recall}")
    return max((point for point in points if point.recall >= recall), key=lambda point: point.per_second)


def _per_second(search: Callable[[Tensor], object], queries: Tensor) -> float:
    batches = [queries[start : start + BATCH] for start in range(0, max(1, len(queries) - BATCH + 1), BATCH)][:8]
    search(batches[0])
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        for batch in batches:
            search(batch)
        best = min(best, time.perf_counter() - start)
    return sum(map(len, batches)) / best
