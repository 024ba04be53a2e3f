"""What a search costs: FAISS's counts, completed so that they are the rows a query was compared with."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from dexml.device import faiss_wheel
from dexml.table import option_model
from index import INDEXES
from index.distances import distances
from index.faiss_index import SETTINGS, FaissIndex

pytestmark = pytest.mark.skipif(faiss_wheel() is None, reason="no FAISS wheel is installed")
ROWS, QUERIES = 2000, 10


def unit(count: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture
def counted():
    labels, queries = unit(ROWS, 0), unit(QUERIES, 1)

    def counted(factory: str, **options: int) -> tuple[FaissIndex, float]:
        index = INDEXES.build("faiss", {"factory": factory, "device": "cpu", **options})
        assert isinstance(index, FaissIndex)
        index.build(labels)
        return index, distances(index, lambda: len(index.search(queries, 5, 1.0).ids)) / QUERIES

    return counted


def test_all_lists_are_all_rows_and_all_centroids(counted):
    assert counted("IVF16,Flat", nprobe=16)[1] == ROWS + 16
    assert counted("SQ8")[1] == ROWS
    few = counted("IVF16,Flat", nprobe=2)[1]
    assert 16 < few < ROWS / 3
    by_graph = counted("IVF16_HNSW8,Flat", nprobe=16)[1]
    assert ROWS < by_graph < ROWS + 16 * 16


def test_what_is_set_anew_is_what_an_index_with_these_options_does(counted):
    assert set(SETTINGS) <= set(option_model(FaissIndex).model_fields)
    queries = unit(QUERIES, 1)
    for factory, option, low, high in (("IVF16,Flat", "nprobe", 1, 8), ("HNSW8", "ef_search", 5, 200)):
        index, cost = counted(factory, **{option: low})
        index.explore(**{option: high})
        more = counted(factory, **{option: high})[1]
        assert more > 1.5 * cost
        again = distances(index, lambda: len(index.search(queries, 5, 1.0).ids))  # noqa: B023
        assert again / QUERIES == pytest.approx(more, rel=0.2)
        assert index.describe()[option] == high
    refined, _ = counted("PQ2x4,RFlat")
    right = (queries @ unit(ROWS, 0).T).topk(5).indices

    def found() -> int:
        return sum(
            len(set(a) & set(b)) for a, b in zip(refined.search(queries, 5, 1.0).ids.tolist(), right.tolist(), strict=True)
        )

    before = found()
    refined.explore(k_factor=50)
    assert found() > before
