"""Every row of RERANKERS: a permutation of the candidates, scores non-increasing, padding last."""

from __future__ import annotations

import pytest
import torch

from dexml.kernels import choose
from dexml.types import TopK
from index.rerankers import RERANKERS


@pytest.fixture(params=list(RERANKERS))
def reranker(request: pytest.FixtureRequest):
    return RERANKERS.build(request.param, {}, choose())


def problem() -> tuple[torch.Tensor, torch.Tensor, TopK]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.nn.functional.normalize(torch.randn(60, 20, generator=generator), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(4, 20, generator=generator), dim=1)
    scores, ids = (queries @ labels.T).sort(dim=1, descending=True)
    ids, scores = ids[:, :12].clone(), scores[:, :12].clone()
    ids[1, 8:], scores[1, 8:] = -1, -torch.inf
    return queries, labels, TopK(ids, scores)


def test_a_permutation_in_order_with_padding_last(reranker):
    queries, labels, found = problem()
    kernels = choose()
    answer = reranker.rerank(queries, kernels.prepare(labels), found, 0.05)
    assert answer.ids.sort(dim=1).values.tolist() == found.ids.sort(dim=1).values.tolist()
    finite = answer.scores[answer.ids >= 0]
    assert torch.isfinite(finite).all()
    assert (answer.scores.nan_to_num(neginf=-9).diff(dim=1) <= 1e-7).all()
    assert (answer.ids[1, 8:] == -1).all() and (answer.scores[1, 8:] == -torch.inf).all()
    assert answer.log_z is not None
    assert answer.probabilities(0.05).sum(dim=1).tolist() == pytest.approx([1] * 4, abs=1e-5)


def test_rescoring_mends_a_wrong_order():
    queries, labels, found = problem()
    kernels = choose()
    shuffled = TopK(found.ids.flip(1), found.scores.flip(1).contiguous())
    answer = RERANKERS.build("softmax", {}, kernels).rerank(queries, kernels.prepare(labels), shuffled, 0.05)
    assert answer.ids.tolist() == found.ids.tolist()
