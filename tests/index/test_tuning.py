"""Settings for a recall: what is said of one is what an index with it does, and the quickest that reaches the goal is taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dexml.device import faiss_wheel
from dexml.errors import InputError
from index import INDEXES, tuning

pytestmark = pytest.mark.skipif(faiss_wheel() is None, reason="no FAISS wheel is installed")


def unit(count: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_recall_of_a_setting_is_that_of_an_index_with_its_options():
    labels, queries = unit(4000, 0), unit(64, 1)
    true = (queries.double() @ labels.double().T).topk(10, 1).indices.tolist()
    points = [point for curve in tuning.explore(labels, queries, 10, tuning.structures(4000)) for point in curve]
    assert {point.options.get("factory") for point in points} == {None, "Flat", "SQ8", "HNSW32", "IVF64,Flat", "IVF64,SQ8"}
    for point in points:
        index = INDEXES.build(point.name, point.options)
        index.build(labels)
        found = index.search(queries, 10, 1.0).ids.tolist()
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, true, strict=True)])
        assert recall == pytest.approx(point.recall, abs=0.06 if "IVF" in point.words else 0.02), point
        assert point.per_second > 0


def test_the_quickest_that_reaches_the_goal_is_taken():
    points = [tuning.Point("exact", {}, 1.0, 10), tuning.Point("faiss", {}, 0.98, 30), tuning.Point("faiss", {}, 0.9, 50)]
    assert [tuning.fastest(points, goal).per_second for goal in (1.0, 0.98, 0.9, 0.1)] == [10, 30, 50, 50]
    for wrong in (0, 1.1, -1):
        with pytest.raises(InputError, match="at most 1"):
            tuning.fastest(points, wrong)


def test_few_labels_have_no_lists():
    assert tuning.structures(100) == ["Flat", "SQ8", "HNSW32"]
    assert "IVF4096,Flat" in tuning.structures(1_000_000)
