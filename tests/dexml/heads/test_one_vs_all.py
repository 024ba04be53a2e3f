"""The one-vs-all head against liblinear, and what the re-weighting of positives is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dexml.heads import one_vs_all
from dexml.heads.one_vs_all import OneVsAll
from dexml.losses.base import Pairs
from dexml.losses.squared_hinge import SquaredHinge
from dexml.types import Positives

N, D, L = 200, 24, 6
POSITIVES = Positives.from_rows([[] if i == 9 else [i % 5, (i * 7) % 5] for i in range(N)], L)  # label 5 has none


def rows() -> torch.Tensor:
    made = torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.normalize(made, dim=1)


@pytest.mark.parametrize(("cost", "weight"), [(1.0, 1.0), (10.0, 20.0), (1000.0, 3.0)])
def test_the_objective_is_liblinears(cost, weight):
    svm = pytest.importorskip("sklearn.svm")
    labelled = np.flatnonzero(np.diff(POSITIVES.indptr))
    used, truth = rows()[labelled], POSITIVES.take(labelled)
    head = OneVsAll(cost=cost, positive_weight=weight)
    found = head.objective(used, truth, head.fit(rows(), POSITIVES))
    for label in range(5):
        peer = svm.LinearSVC(C=cost, class_weight={1: weight}, fit_intercept=False, tol=1e-8, max_iter=10**6)
        peer.fit(used.numpy(), truth.matrix().toarray()[:, label] > 0)
        best = head.objective(used, truth, torch.from_numpy(np.repeat(peer.coef_, L, axis=0)))[label].item()
        assert found[label].item() == pytest.approx(best, rel=1e-3)


def test_labels_lean_on_their_centres_where_rows_say_little():
    centre = torch.randn(L, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = OneVsAll(cost=1e-9).fit(rows(), POSITIVES, centre)
    assert torch.allclose(weights, centre, atol=1e-5)
    head = OneVsAll(cost=3, positive_weight=4, tolerance=1e-9)
    labelled = np.flatnonzero(np.diff(POSITIVES.indptr))
    found = head.fit(rows(), POSITIVES, centre).requires_grad_()
    value = head.objective(rows()[labelled], POSITIVES.take(labelled), found, centre).sum()
    assert torch.autograd.grad(value, found)[0].abs().max() < 1e-6
    assert not torch.allclose(found, head.fit(rows(), POSITIVES), atol=1e-2)


def test_blocks_change_nothing_but_the_time(monkeypatch):
    head = OneVsAll(cost=5, positive_weight=10, tolerance=1e-8)
    whole, done = head.fit(rows(), POSITIVES), []
    monkeypatch.setattr(one_vs_all, "BLOCK_BYTES", 2 * 8 * N)
    assert torch.allclose(head.fit(rows(), POSITIVES, report=done.append), whole, atol=1e-7)
    assert done == [2, 4, 6]
    single = head.fit(rows().float(), POSITIVES)
    assert single.dtype == torch.float32 and torch.allclose(single.double(), whole, atol=1e-4)


def test_a_pair_beyond_its_margin_has_no_gradient_at_all():
    scores = torch.tensor([[2.0, 1.0, 0.5, -3.0, -1.0, 0.0]], dtype=torch.float64)
    truth = Positives.from_rows([[0, 1, 2]], 6)
    loss = SquaredHinge(temperature=1.0, boundary=0.0, positive_weight=3.0)
    pairs = Pairs.of(truth, loss.shares(truth), scores)
    value, gradient = loss.value_and_gradient(scores, pairs)
    assert gradient[0].tolist() == [0, 0, -3.0 * 2 * 0.5 / 6, 0, 0, 2 / 6], "exactly 0 where y·o ≥ 1"
    assert value.item() == pytest.approx((3 * 0.25 + 1) / 6)


def test_weighted_positives_are_within_two_points_of_softmax():
    """200 classes of 10 rows in 64 dimensions."""
    made = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(200, 64, generator=made), dim=1)
    classes = torch.arange(200).repeat(15)
    inputs = torch.nn.functional.normalize(centres[classes] + 0.17 * torch.randn(3000, 64, generator=made), dim=1)
    inputs = torch.cat([inputs, torch.ones(3000, 1)], dim=1)  # a bias
    train, test = torch.arange(3000) < 2000, torch.arange(3000) >= 2000
    truth = Positives.from_rows([[c] for c in classes[train].tolist()], 200)

    def accuracy(weights: torch.Tensor) -> float:
        return ((inputs[test] @ weights.T).argmax(dim=1) == classes[test]).double().mean().item()

    softmax = torch.zeros(200, 65, requires_grad=True)
    optimizer = torch.optim.LBFGS([softmax], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(inputs[train] @ softmax.T, classes[train]) + 2e-6 * softmax.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    found = accuracy(OneVsAll(cost=0.1, positive_weight=20).fit(inputs[train], truth))
    assert 0.9 < accuracy(softmax.detach()) and abs(found - accuracy(softmax.detach())) <= 0.02
