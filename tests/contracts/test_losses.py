"""Every row of LOSSES against its formula written out with autograd in float64, and the promises that all of them make."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dexml.losses import LOSSES, Loss
from dexml.types import Positives

T = 0.2
ROWS = [[0, 3], [7], [], [1, 2, 5, 6], [4]]
B, L, D = len(ROWS), 9, 6


def naive_softmax(s, positives):
    return -sum(s[i, p] - torch.logsumexp(s[i], 0) for i, row in enumerate(positives) for p in row) / len(s)


def naive_decoupled(s, positives):
    total = s.sum() * 0
    for i, row in enumerate(positives):
        negatives = [j for j in range(s.shape[1]) if j not in row]
        for p in row:
            total = total - (s[i, p] - torch.logsumexp(s[i, [p, *negatives]], 0)) / len(row)
    return total / len(s)


def naive_bce(s, positives):
    total = s.sum() * 0
    for i, row in enumerate(positives):
        if row:
            total = total + torch.log1p(s[i].exp()).sum() - s[i, row].sum()
    return total / s.numel()


def naive_soft_topk(s, positives, k=5, alpha=2.0):
    low, high = -s.amax(1) - 60, -s.amin(1) + 60
    for _ in range(200):
        middle = (low + high) / 2
        above = torch.sigmoid(alpha * (s + middle[:, None])).sum(1) > k
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    t = low.detach()
    v = alpha * torch.sigmoid(alpha * (s + t[:, None])) * torch.sigmoid(-alpha * (s + t[:, None]))
    t = t - ((v.detach() * (s - s.detach())).sum(1) / v.detach().sum(1))  # the implicit derivative of the threshold
    total = s.sum() * 0
    for i, row in enumerate(positives):
        for p in row:
            total = total - torch.nn.functional.logsigmoid(alpha * (s[i, p] + t[i])) / len(row)
    return total / len(s)


NAIVE = {"softmax": naive_softmax, "decoupled_softmax": naive_decoupled, "bce": naive_bce, "soft_topk": naive_soft_topk}


def rows(count: int, seed: int, dtype=torch.float64, norm: float = 1.0) -> torch.Tensor:
    made = torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (norm * torch.nn.functional.normalize(made, dim=1)).to(dtype).requires_grad_()


@pytest.fixture(params=list(LOSSES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(name: str, **options) -> Loss:
    return LOSSES.build(name, {"temperature": T, **options})


def gradients(value: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, inputs))


@pytest.mark.parametrize("norm", [1.0, 3.0])
def test_value_and_gradient_equal_the_formula(name, norm):
    queries, labels = rows(B, 0, norm=norm), rows(L, 1)
    value = build(name)(queries, labels, Positives.from_rows(ROWS, L))
    expected = NAIVE[name](queries @ labels.T / T, ROWS)
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)
    for got, want in zip(gradients(value, queries, labels), gradients(expected, queries, labels), strict=True):
        assert torch.allclose(got, want, rtol=1e-8, atol=1e-10)


def test_gradcheck_in_float64(name):
    positives = Positives.from_rows(ROWS, L)
    assert torch.autograd.gradcheck(lambda q, y: build(name)(q, y, positives), (rows(B, 0), rows(L, 1)))


def test_float32_and_bfloat16_products_come_near_float64(name):
    positives = Positives.from_rows(ROWS, L)
    exact = build(name)(rows(B, 0), rows(L, 1), positives)
    single = [rows(B, 0, torch.float32), rows(L, 1, torch.float32)]
    for products, tolerance in (("float32", 1e-5), ("bfloat16", 0.02)):
        value = build(name, products=products)(*single, positives)
        assert value.item() == pytest.approx(exact.item(), rel=tolerance)
        for got, want in zip(
            gradients(value, *single), gradients(build(name)(*(e := [rows(B, 0), rows(L, 1)]), positives), *e), strict=True
        ):
            assert (got - want).norm() <= tolerance * want.norm()


def test_a_permutation_of_the_labels_changes_nothing(name):
    queries, labels = rows(B, 0), rows(L, 1)
    order = torch.randperm(L, generator=torch.Generator().manual_seed(2))
    place = torch.argsort(order)
    moved = [[int(place[p]) for p in row] for row in ROWS]
    one = build(name)(queries, labels, Positives.from_rows(ROWS, L))
    other = build(name)(queries, labels[order], Positives.from_rows(moved, L))
    assert one.item() == pytest.approx(other.item(), rel=1e-12)


def test_a_row_without_positives_adds_nothing(name):
    queries, labels = rows(B, 0), rows(L, 1)
    value = build(name)(queries, labels, Positives.from_rows(ROWS, L))
    of_queries, _ = gradients(value, queries, labels)
    assert (of_queries[2] == 0).all()
    kept = [0, 1, 3, 4]
    without = build(name)(queries[kept], labels, Positives.from_rows([ROWS[i] for i in kept], L))
    assert value.item() == pytest.approx(without.item() * 4 / 5, rel=1e-12), "it still counts in the mean over the batch"


def test_no_queries_and_no_positives_at_all(name):
    for rows_of_labels in ([], [[], []]):
        queries, labels = rows(len(rows_of_labels), 0), rows(L, 1)
        value = build(name)(queries, labels, Positives.from_rows(rows_of_labels, L))
        assert value.item() == 0
        assert all((gradient == 0).all() for gradient in gradients(value, queries, labels))


def test_every_label_positive_is_finite(name):
    queries, labels = rows(2, 0), rows(L, 1)
    value = build(name)(queries, labels, Positives.from_rows([list(range(L)), [0]], L))
    assert all(torch.isfinite(found).all() for found in (value, *gradients(value, queries, labels)))


def test_inputs_are_left_alone_and_extreme_scores_stay_finite(name):
    queries, labels = rows(B, 0, torch.float32, norm=200.0), rows(L, 1, torch.float32)
    before = queries.detach().clone(), labels.detach().clone()
    value = build(name)(queries, labels, Positives.from_rows(ROWS, L))
    assert all(torch.isfinite(found).all() for found in (value, *gradients(value, queries, labels)))
    assert torch.equal(queries, before[0]) and torch.equal(labels, before[1])


def test_shapes_that_disagree_are_refused(name):
    with pytest.raises(ValueError, match="loss:"):
        build(name)(rows(B, 0), rows(L, 1), Positives.from_rows(ROWS, L + 1))
    with pytest.raises(ValueError, match="loss:"):
        build(name)(rows(B, 0), rows(L, 1)[:, :3], Positives.from_rows(ROWS, L))


def test_no_positive_of_the_decoupled_softmax_is_ever_pushed_down():
    """The paper's point: with softmax an over-confident positive is pushed down for the sake of the others."""
    queries = torch.eye(1, 4, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[1.0, 0, 0, 0], [0.2, 0.9, 0, 0], [0.1, 0, 0.9, 0], [0, 0, 0, 1]], dtype=torch.float64)
    positives = Positives.from_rows([[0, 1, 2]], 4)

    def label_gradient(name):
        inputs = labels.clone().requires_grad_()
        return gradients(LOSSES.build(name, {"temperature": T})(queries, inputs, positives), inputs)[0][:, 0]

    assert (label_gradient("decoupled_softmax")[:3] < 0).all()
    assert label_gradient("softmax")[0] > 0


def test_one_positive_per_row_is_drawn_and_the_rest_masked():
    queries, labels = rows(B, 0), rows(L, 1)
    torch.manual_seed(0)
    values = [
        build("decoupled_softmax", positives="one")(queries, labels, Positives.from_rows(ROWS, L)).item() for _ in range(4000)
    ]
    everything = build("decoupled_softmax")(queries, labels, Positives.from_rows(ROWS, L)).item()
    assert np.std(values) > 0
    assert np.mean(values) == pytest.approx(everything, abs=4 * np.std(values) / math.sqrt(len(values)))
