"""Soft-NMS against the definition in plain Python, and what it promises: nothing is lost, no score rises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dexml.errors import InputError
from dexml.types import TopK
from index.diversity import Diversity, diversified
from index.retriever import Retriever

TAU = 0.05
NONE = np.empty(0, dtype=np.int64)


def topics(count: int, of: int, width: int = 24, noise: float = 0.35, seed: int = 0) -> torch.Tensor:
    """Return `count` topics of `of` near-duplicate unit rows each, topic after topic."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.standard_normal((count, width)), of, axis=0) + noise * rng.standard_normal((count * of, width))
    return torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


def candidates(queries: torch.Tensor, rows: torch.Tensor, count: int) -> TopK:
    scores = queries @ rows.T
    order = torch.sort(scores, dim=1, descending=True, stable=True)
    return TopK(order.indices[:, :count], order.values[:, :count], torch.logsumexp(scores / TAU, dim=1))


def slowly(found: TopK, k: int, rows: torch.Tensor, sigma: float) -> list[list[tuple[int, float]]]:
    """Return (id, rank) of each query as the paper has it: the best taken, the other probabilities decayed, and again."""
    answers = []
    for ids, scores in zip(found.ids.tolist(), found.scores.tolist(), strict=True):
        left = {number: math.exp(score / TAU) for number, score in zip(ids, scores, strict=True) if number >= 0}
        taken: list[tuple[int, float]] = []
        while left and len(taken) < k:
            best = max(left, key=lambda number: left[number])
            taken.append((best, TAU * math.log(left.pop(best))))
            for number in left:
                likeness = max(0.0, float(rows[best].double() @ rows[number].double()))
                left[number] *= math.exp(-(likeness**2) / sigma)
        answers.append(taken)
    return answers


@pytest.mark.parametrize("sigma", [0.05, 0.5, 4.0])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_it_is_the_decay_of_probabilities_done_slowly(sigma: float, k: int):
    rows = topics(12, 5)
    queries = topics(6, 1, seed=1)  # some scores are negative: 40 of 60 candidates
    found = candidates(queries, rows, 40)
    assert (found.scores < 0).any()
    topk, ranks = diversified(found, k, Diversity(sigma), rows.__getitem__, NONE, TAU)
    for query, expected in enumerate(slowly(found, k, rows, sigma)):
        assert topk.ids[query].tolist() == [number for number, _ in expected]
        assert ranks[query].tolist() == pytest.approx([rank for _, rank in expected], abs=1e-5)


def test_nothing_is_lost_no_score_rises_and_the_best_stays_first():
    rows = topics(12, 5)
    found = candidates(topics(8, 1, seed=2), rows, 60)
    topk, ranks = diversified(found, 60, Diversity(0.1), rows.__getitem__, NONE, TAU)
    assert torch.equal(topk.ids.sort(dim=1).values, found.ids.sort(dim=1).values), "a permutation"
    assert torch.equal(topk.ids[:, 0], found.ids[:, 0]) and topk.log_z is found.log_z
    assert (ranks <= topk.scores + 1e-6).all() and (ranks.diff(dim=1) <= 0).all()
    for query in range(8):
        score = dict(zip(found.ids[query].tolist(), found.scores[query].tolist(), strict=True))
        assert topk.scores[query].tolist() == [score[number] for number in topk.ids[query].tolist()], "true cosines"


@pytest.mark.parametrize("sigma", [1e12, math.inf])
def test_no_decay_is_the_plain_order_ties_too(sigma: float):
    rows = topics(4, 3)[torch.tensor([0, 0, 0, 3, 3, 6, 6, 6, 9, 9])]  # many equal rows
    found = candidates(topics(3, 1, seed=3), rows, 10)
    topk, ranks = diversified(found, 10, Diversity(sigma), rows.__getitem__, NONE, TAU)
    assert torch.equal(topk.ids, found.ids) and torch.allclose(ranks, found.scores)


def test_equal_ranks_keep_the_order_of_the_candidates():
    rows = torch.eye(4)  # nobody is like anybody
    found = TopK(torch.tensor([[2, 0, 3, 1]]), torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.zeros(1))
    topk, _ = diversified(found, 4, Diversity(0.01), rows.__getitem__, NONE, TAU)
    assert topk.ids.tolist() == [[2, 0, 3, 1]]


def test_more_topics_are_seen_at_a_smaller_sigma():
    rows = topics(40, 10, noise=0.25)
    found = candidates(topics(16, 1, seed=4), rows, 100)
    seen = []
    for sigma in (math.inf, 1.0, 0.2, 0.04):
        ids = diversified(found, 10, Diversity(sigma), rows.__getitem__, NONE, TAU)[0].ids
        seen.append(np.mean([len(set((row // 10).tolist())) for row in ids]))
    assert seen == sorted(seen) and seen[0] < 4 and seen[-1] > 6


def test_missing_hidden_and_low_labels_push_nobody():
    rows = topics(3, 4)
    found = candidates(rows[:1], rows, 12)
    gap = TopK(
        torch.cat([found.ids, torch.full((1, 2), -1)], 1), torch.cat([found.scores, torch.full((1, 2), -math.inf)], 1), None
    )
    hidden, floor = found.ids[0, :2].numpy(), float(found.scores[0, 6])
    topk, ranks = diversified(gap, 14, Diversity(0.1, floor=floor), rows.__getitem__, hidden, TAU)
    alone = TopK(found.ids[:, 2:7], found.scores[:, 2:7], None)
    expected, expected_ranks = diversified(alone, 5, Diversity(0.1), rows.__getitem__, NONE, TAU)
    assert torch.equal(topk.ids[:, :5], expected.ids) and torch.equal(ranks[:, :5], expected_ranks)
    assert (topk.ids[:, 5:] == -1).all() and (topk.scores[:, 5:] == -math.inf).all()
    nobody, _ = diversified(gap, 3, Diversity(0.1, floor=2.0), rows.__getitem__, NONE, TAU)
    assert (nobody.ids == -1).all()


def test_the_query_path_diversifies_what_was_rescored(tiny_bundle):
    retriever = Retriever.open(tiny_bundle)
    texts = ["sorting of arrays", "sparse matrices and images"]
    plain, diverse = (retriever.search(texts, 10, diversity=asked) for asked in (None, Diversity(0.02)))
    assert plain.ranks is None and diverse.ranks is not None
    assert sorted(diverse.topk.ids[0].tolist()) == sorted(plain.topk.ids[0].tolist())
    assert diverse.topk.ids.tolist() != plain.topk.ids.tolist()
    assert torch.equal(diverse.topk.log_z, plain.topk.log_z), "the same probabilities"
    few = retriever.search(texts, 3, diversity=Diversity(0.02, frozenset({"sorting", "no such label"})))
    assert few.topk.ids.shape == (2, 3) and retriever.labels.row("sorting") not in few.topk.ids
    hot = retriever.search(texts, 10, temperature=2.0, diversity=Diversity(0.02))
    assert torch.equal(hot.topk.ids, diverse.topk.ids), "a request's temperature changes no order"
    with pytest.raises(InputError, match="above 0"):
        retriever.search(texts, 3, diversity=Diversity(0.0))
