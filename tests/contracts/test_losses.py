"""Every row of LOSSES on every kernel backend against its formula, written out for autograd, and what all of them promise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dexml.kernels import KERNELS
from dexml.kernels.reference import threshold
from dexml.losses import LOSSES, Loss
from dexml.losses.base import ScoreLoss
from dexml.types import InputError, Positives, Problem

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


def naive_squared_hinge(s, positives, weight=20.0):
    s, total = s - 0.4 / T, s.sum() * 0
    for i, row in enumerate(positives):
        if row:
            negatives = [j for j in range(s.shape[1]) if j not in row]
            total = total + (1 + s[i, negatives]).clamp(min=0).square().sum()
            total = total + weight * (1 - s[i, row]).clamp(min=0).square().sum()
    return total / s.numel()


def naive_z_loss(s, positives):
    total = s.sum() * 0
    for i, row in enumerate(positives):
        for p in row:
            o = s[i, [p, *(j for j in range(s.shape[1]) if j not in row)]]
            flat = len(o) == 1 or bool((o == o[0]).all())
            z = o.sum() * 0 if flat else (o[0] - o.mean()) / o.std(correction=0)
            total = total + torch.nn.functional.softplus(6 - z) / len(row)
    return total / len(s)


def naive_stablemax(s, positives):
    stable = torch.where(s >= 0, s + 1, 1 / (1 - s))
    total = s.sum() * 0
    for i, row in enumerate(positives):
        negatives = [j for j in range(s.shape[1]) if j not in row]
        for p in row:
            total = total - torch.log(stable[i, p] / stable[i, [p, *negatives]].sum()) / len(row)
    return total / len(s)


NAIVE = {
    "softmax": naive_softmax,
    "decoupled_softmax": naive_decoupled,
    "bce": naive_bce,
    "soft_topk": naive_soft_topk,
    "squared_hinge": naive_squared_hinge,
    "z_loss": naive_z_loss,
    "stablemax": naive_stablemax,
}
BY_KERNELS = [name for name in LOSSES if issubclass(LOSSES[name], ScoreLoss)]


@dataclass(frozen=True)
class Case:
    """A loss on one backend, or one that needs none, with the number type that is held to its formula and how near it comes."""

    name: str
    backend: str | None

    @property
    def number(self) -> torch.dtype:
        return torch.float64 if self.backend == "reference" else torch.float32

    @property
    def near(self) -> float:
        return 1e-9 if self.backend == "reference" else 1e-5

    def build(self, **options) -> Loss:
        by_kernels = {"backend": self.backend, "products": "float32"} if self.backend else {}
        return LOSSES.build(self.name, {"temperature": T, **by_kernels, **options})

    def rows(self, count: int, seed: int, norm: float = 1.0) -> torch.Tensor:
        return rows(count, seed, self.number, norm)


CASES = [Case(name, backend) for name in LOSSES for backend in (KERNELS if name in BY_KERNELS else [None])]


@pytest.fixture(params=CASES, ids=lambda c: f"{c.name}-{c.backend}")
def case(request: pytest.FixtureRequest) -> Case:
    backend = request.param.backend
    reason = None if backend is None else KERNELS[backend].unsupported(Problem(needs_grad=True))
    if reason is not None:
        pytest.skip(f"{request.param.backend} {reason}")
    return request.param


@pytest.fixture(params=list(LOSSES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rows(count: int, seed: int, dtype=torch.float64, norm: float = 1.0) -> torch.Tensor:
    made = torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (norm * torch.nn.functional.normalize(made, dim=1)).to(dtype).requires_grad_()


def gradients(value: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, inputs))


def agree(case: Case, value: torch.Tensor, queries: torch.Tensor, labels: torch.Tensor, given=None, tolerance=None) -> None:
    """Hold a value and its gradients by two inputs to the formula in float64."""
    given, tolerance = ROWS if given is None else given, case.near if tolerance is None else tolerance
    expected = NAIVE[case.name](queries.double() @ labels.double().T / T, given)
    assert value.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    for got, want in zip(gradients(value, queries, labels), gradients(expected, queries, labels), strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        assert (got.double() - want.double()).norm() <= tolerance * max(0.1, want.double().norm())


@pytest.mark.parametrize("norm", [1.0, 3.0])
def test_value_and_gradient_equal_the_formula(case, norm):
    queries, labels = case.rows(B, 0, norm), case.rows(L, 1)
    agree(case, case.build()(queries, labels, Positives.from_rows(ROWS, L)), queries, labels)


def test_gradcheck_in_float64(name):
    positives, loss = Positives.from_rows(ROWS, L), LOSSES.build(name, {"temperature": T})
    assert torch.autograd.gradcheck(lambda q, y: loss(q, y, positives), (rows(B, 0), rows(L, 1)))


def test_bfloat16_products_come_near(case):
    if case.backend is None:
        pytest.skip("has no products to choose")
    queries, labels = rows(B, 0, torch.float32), rows(L, 1, torch.float32)
    agree(case, case.build(products="bfloat16")(queries, labels, Positives.from_rows(ROWS, L)), queries, labels, tolerance=0.02)


def test_it_tells_what_is_left_of_the_pull_on_each_positive(case):
    given = [[0, 3], [7], [], [1, 2, 5, 6], range(L)]
    queries, labels = case.rows(B, 0), case.rows(L, 1)
    loss = case.build()
    loss(queries, labels, Positives.from_rows(given, L))
    if case.name in ("squared_hinge", "z_loss"):  # nothing exponential in them can vanish
        assert loss.pulls is None or bool(loss.pulls.isnan().all())
        return
    assert loss.pulls is not None and not loss.pulls.requires_grad
    scores = (queries.double() @ labels.double().T / T).detach()
    expected = [pull(case.name, scores[i], p, row) for i, row in enumerate(given) for p in row]
    torch.testing.assert_close(loss.pulls.double(), torch.tensor(expected).double(), atol=1e-6, rtol=1e-4, equal_nan=True)


def pull(name: str, s: torch.Tensor, p: int, positives) -> float:
    if name == "bce":
        return torch.sigmoid(-s[p]).item()
    if name == "soft_topk":
        t = threshold(s[None], 5, 2.0)[0]
        return torch.sigmoid(-2.0 * (s[p] + t)).item()
    against = [j for j in range(L) if j != p and (name == "softmax" or j not in positives)]
    if not against:
        return math.nan
    weights = torch.where(s >= 0, s + 1, 1 / (1 - s)) if name == "stablemax" else s.exp()
    return (weights[against].sum() / (weights[against].sum() + weights[p])).item()


@pytest.mark.parametrize("gap", [8, 12])
def test_a_lead_that_bfloat16_would_lose_keeps_its_gradient_with_bfloat16_products(case, gap):
    """Exponentials are summed in float32 all the same, and a gradient is rounded, not added to 1."""
    if case.name != "decoupled_softmax":
        pytest.skip("its gradient is another")
    queries, labels = torch.eye(1, 9), torch.eye(9)
    queries, labels = (side.to(case.number).requires_grad_() for side in (queries, labels))
    temperature = 1 / (gap + math.log(8))
    loss = case.build(temperature=temperature, products="bfloat16")
    value = loss(queries, labels, Positives.from_rows([[0]], 9))
    exact = math.exp(-gap) / (1 + math.exp(-gap)) / temperature
    assert gradients(value, labels)[0][0, 0].item() == pytest.approx(-exact, rel=0.1)
    assert loss.pulls is not None and loss.pulls.item() < 2.0**-8


def test_a_permutation_of_the_labels_changes_nothing(case):
    queries, labels = case.rows(B, 0), case.rows(L, 1)
    order = torch.randperm(L, generator=torch.Generator().manual_seed(2))
    place = torch.argsort(order)
    moved = [[int(place[p]) for p in row] for row in ROWS]
    one = case.build()(queries, labels, Positives.from_rows(ROWS, L))
    other = case.build()(queries, labels[order], Positives.from_rows(moved, L))
    assert one.item() == pytest.approx(other.item(), rel=case.near / 10)


def test_a_row_without_positives_adds_nothing(case):
    queries, labels = case.rows(B, 0), case.rows(L, 1)
    value = case.build()(queries, labels, Positives.from_rows(ROWS, L))
    of_queries, _ = gradients(value, queries, labels)
    assert (of_queries[2] == 0).all()
    kept = [0, 1, 3, 4]
    without = case.build()(queries[kept], labels, Positives.from_rows([ROWS[i] for i in kept], L))
    assert value.item() == pytest.approx(without.item() * 4 / 5, rel=case.near / 10), (
        "it still counts in the mean over the batch"
    )


def test_no_queries_no_positives_and_no_labels(case):
    for given, count in (([], L), ([[], []], L), ([[], []], 0)):
        queries, labels = case.rows(len(given), 0), case.rows(count, 1)
        value = case.build()(queries, labels, Positives.from_rows(given, count))
        assert value.item() == 0
        assert all((gradient == 0).all() for gradient in gradients(value, queries, labels))


def test_one_label(case):
    queries, labels = case.rows(3, 0), case.rows(1, 1)
    value = case.build()(queries, labels, Positives.from_rows([[0], [], [0]], 1))
    if case.name == "soft_topk":
        assert value.item() == 0, "k is more than there is"
        assert all((gradient == 0).all() for gradient in gradients(value, queries, labels))
    else:
        agree(case, value, queries, labels, [[0], [], [0]])


@pytest.mark.parametrize("k", [L, L + 1, 1000])
def test_soft_topk_of_all_labels_is_nothing(case, k):
    if case.name != "soft_topk":
        pytest.skip("has no k")
    queries, labels = case.rows(B, 0), case.rows(L, 1)
    value = case.build(k=k)(queries, labels, Positives.from_rows(ROWS, L))
    assert value.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(value, queries, labels))


def test_every_label_positive_is_finite(case):
    queries, labels = case.rows(2, 0), case.rows(L, 1)
    agree(case, case.build()(queries, labels, Positives.from_rows([range(L), [0]], L)), queries, labels, [list(range(L)), [0]])


def test_duplicate_and_zero_rows(case):
    made = rows(L, 1).detach()
    made[[1, 5]], made[[2, 8]] = made[[0, 0]], 0
    queries, labels = case.rows(B, 0).detach(), made.to(case.number).requires_grad_()
    queries[3] = 0
    queries.requires_grad_()
    agree(case, case.build()(queries, labels, Positives.from_rows(ROWS, L)), queries, labels)


def test_non_contiguous_inputs(case):
    queries = case.rows(D, 0).detach()[:, :B].T.requires_grad_()
    labels = case.rows(2 * L, 1).detach()[::2].requires_grad_()
    assert not queries.is_contiguous() and not labels.is_contiguous()
    agree(case, case.build()(queries, labels, Positives.from_rows(ROWS, L)), queries, labels)


def test_float16_inputs_are_computed_in_float32(case):
    queries, labels = rows(B, 0, torch.float16), rows(L, 1, torch.float16)
    value = case.build()(queries, labels, Positives.from_rows(ROWS, L))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(NAIVE[case.name](queries.double() @ labels.double().T / T, ROWS).item(), rel=1e-5)
    agree(case, value, queries, labels, tolerance=1e-3)  # its gradients are rounded to float16


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # Triton's interpreter computes in numpy
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_embedding_that_is_not_finite_shows_in_the_loss(case, bad):
    queries, labels = case.rows(B, 0).detach(), case.rows(L, 1)
    queries[1, 2] = bad
    value = case.build()(queries.requires_grad_(), labels, Positives.from_rows(ROWS, L))
    assert not torch.isfinite(value), "training looks for this and says at which step"


def test_inputs_are_left_alone_and_extreme_scores_stay_finite(case):
    queries, labels = rows(B, 0, torch.float32, norm=200.0), rows(L, 1, torch.float32)
    before = queries.detach().clone(), labels.detach().clone()
    value = case.build()(queries, labels, Positives.from_rows(ROWS, L))
    assert all(torch.isfinite(found).all() for found in (value, *gradients(value, queries, labels)))
    assert torch.equal(queries, before[0]) and torch.equal(labels, before[1])


def test_shapes_that_disagree_are_refused(case):
    with pytest.raises(InputError, match=r"positives \(5, 10\)"):
        case.build()(case.rows(B, 0), case.rows(L, 1), Positives.from_rows(ROWS, L + 1))
    with pytest.raises(InputError, match=r"\(B, D\) and \(L, D\)"):
        case.build()(case.rows(B, 0), case.rows(L, 1)[:, :3], Positives.from_rows(ROWS, L))


def test_a_kept_graph_gives_the_same_gradients_again(case):
    queries, labels = case.rows(B, 0), case.rows(L, 1)
    options = {"positives": "one"} if case.name == "decoupled_softmax" else {}
    value = case.build(**options)(queries, labels, Positives.from_rows(ROWS, L))
    first = torch.autograd.grad(value, (queries, labels), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    again = torch.autograd.grad(3 * value, (queries, labels))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True)), "the second pass must not touch the first's"
    assert all(torch.allclose(3 * a, b, rtol=1e-5, atol=1e-7) for a, b in zip(first, again, strict=True))


def test_the_score_matrix_never_exists(case, largest_tensor):
    if case.backend == "reference":
        pytest.skip("it is the one that holds it")
    batch, count = 64, 2500
    queries, labels = case.rows(batch, 0), case.rows(count, 1)
    positives = Positives.from_rows([[i] for i in range(batch)], count)
    largest = largest_tensor(case.backend, lambda: gradients(case.build()(queries, labels, positives), queries, labels))
    assert 4 * D * count <= largest <= 4 * batch * count / 4, "at least the gradient by the labels, far from the scores"


@pytest.mark.parametrize("name", BY_KERNELS)
def test_auto_is_the_first_backend_that_serves(name):
    loss = LOSSES.build(name, {"temperature": T})
    first = next(backend for backend in KERNELS if KERNELS[backend].unsupported(Problem(needs_grad=True)) is None)
    assert loss.serving(rows(B, 0, torch.float32), rows(L, 1, torch.float32)) == first != "reference"
    assert loss.serving(rows(B, 0), rows(L, 1)) == "reference"
    with pytest.raises(InputError, match="float64"):
        LOSSES.build(name, {"backend": "numba"})(rows(B, 0), rows(L, 1), Positives.from_rows(ROWS, L))


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
    queries, labels, positives = rows(B, 0), rows(L, 1), Positives.from_rows(ROWS, L)
    torch.manual_seed(0)
    one = LOSSES.build("decoupled_softmax", {"temperature": T, "positives": "one"})
    values = [one(queries, labels, positives).item() for _ in range(4000)]
    everything = LOSSES.build("decoupled_softmax", {"temperature": T})(queries, labels, positives).item()
    assert np.std(values) > 0
    assert np.mean(values) == pytest.approx(everything, abs=4 * np.std(values) / math.sqrt(len(values)))
