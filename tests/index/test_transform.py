"""The learned transform: inner products stay, and a scalar quantizer loses less (acceptance figures of OSTQuant)."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from dexml.errors import InputError
from index import INDEXES
from index.transform import Transform, learn, rounded, start


def outliers(count: int, seed: int) -> torch.Tensor:
    """Return unit rows whose first four dimensions are much larger than the others, which are of unequal size themselves."""
    size = torch.linspace(1, 0.1, 64)
    size[:4] *= 6
    return normalize(torch.randn(count, 64, generator=torch.Generator().manual_seed(seed)) * size, dim=1)


def recall(labels: torch.Tensor, queries: torch.Tensor, bits: int, transform: Transform) -> float:
    true = (queries @ labels.T).topk(10, 1).indices
    found = ((queries @ transform.of_queries) @ rounded(labels @ transform.of_labels, bits).T).topk(10, 1).indices
    return sum(len(set(a) & set(b)) for a, b in zip(true.tolist(), found.tolist(), strict=True)) / true.numel()


def test_recall_rises_and_inner_products_stay():
    labels, queries = outliers(20_000, 0), outliers(200, 1)
    eye = torch.eye(64)
    turned = start(labels, torch.Generator().manual_seed(0)).float()
    learned = learn(labels, 4)
    none, first, last = (recall(labels, queries, 4, t) for t in (Transform(eye, eye), Transform(turned, turned), learned))
    assert last >= none + 0.15 and last >= first - 0.005, (none, first, last)
    assert torch.allclose(learned.of_labels @ learned.of_queries.T, eye, atol=1e-5)
    exact = queries @ labels[:500].T
    assert torch.allclose((queries @ learned.of_queries) @ (labels[:500] @ learned.of_labels).T, exact, atol=1e-5)
    product = learned.of_labels.T @ learned.of_labels  # Λ⁻¹OᵀOΛ⁻¹: diagonal, if O is orthogonal
    assert torch.allclose(product, torch.diag(product.diagonal()), atol=1e-5)


def test_the_quantizer_is_faisss():
    faiss = pytest.importorskip("faiss")
    labels = outliers(3000, 2)
    for bits in (4, 8):
        index = faiss.index_factory(64, f"SQ{bits}", faiss.METRIC_INNER_PRODUCT)
        index.train(labels.numpy())
        index.add(labels.numpy())
        decoded = torch.from_numpy(index.reconstruct_n(0, len(labels)))
        step = (labels.amax(0) - labels.amin(0)) / (2**bits - 1)
        assert ((decoded - rounded(labels, bits)).abs() <= 1.01 * step).all()
        assert ((decoded - rounded(labels, bits)).abs() <= 1e-5).float().mean() > 0.99


def test_it_is_for_scalar_quantizers():
    with pytest.raises(InputError, match="is for scalar quantizers"):
        INDEXES.build("faiss", {"factory": "HNSW32", "transform": "learned"})
