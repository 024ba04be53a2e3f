"""Every row of KERNELS against the definition written in float64, value and gradient, and on odd inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from dexml.kernels import KERNELS, Kernels, choose
from dexml.kernels.checks import COPIES
from dexml.types import InputError, Positives, Problem

T = 0.05


@pytest.fixture(params=list(KERNELS))
def kernels(request: pytest.FixtureRequest) -> Kernels:
    reason = KERNELS[request.param].unsupported(Problem())
    if reason is not None:
        pytest.skip(reason)
    return KERNELS.build(request.param)


@pytest.fixture(params=[(name, copy) for name in KERNELS for copy in (COPIES if name != "reference" else ("auto",))])
def scanning(request: pytest.FixtureRequest) -> tuple[Kernels, str]:
    """A backend with each scanning copy; the reference makes none."""
    name, copy = request.param
    reason = KERNELS[name].unsupported(Problem())
    if reason is not None:
        pytest.skip(reason)
    return KERNELS.build(name), copy


def random_rows(count: int, dimension: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)), dim=1)


def clustered(count: int, dimension: int, seed: int, spread: float) -> torch.Tensor:
    """Labels around a few centres, every tenth a near duplicate of the one before, every hundredth an exact one."""
    made = random_rows(20, dimension, seed)[torch.arange(count) % 20] + spread * random_rows(count, dimension, seed + 1)
    made[10::10] = made[9:-1:10] + 1e-5 * random_rows(len(made[10::10]), dimension, seed + 2)
    made[100::100] = made[99:-1:100]
    return normalize(made, dim=1)


def truth(queries, labels, k, temperature):
    scores = queries.double() @ labels.double().T
    ordered, ids = torch.sort(scores, dim=1, descending=True, stable=True)
    return ids[:, :k], ordered[:, :k], torch.logsumexp(scores / temperature, 1)


def agree(answer, queries, labels, k, temperature):
    ids, scores, log_z = truth(queries, labels, k, temperature)
    found = answer.scores.double()
    assert answer.ids.dtype == torch.int64
    assert torch.allclose(found, scores, rtol=1e-5, atol=1e-5)
    exact = (queries.double()[:, None] * labels.double()[answer.ids]).sum(-1)
    # Labels closer to each other than the rounding of the float64 product itself have no order to agree on.
    assert ((answer.ids == ids) | ((exact - scores).abs() < 1e-14)).all()
    assert (answer.log_z.double() - log_z).abs().max() <= 1e-4


@pytest.mark.parametrize("batch", [1, 3, 7, 16, 33])
def test_scan_equals_float64_brute_force(scanning, batch):
    kernels, copy = scanning
    labels = random_rows(20_011, 52, 0)
    queries = random_rows(batch, 52, 1)
    agree(kernels.scan(queries, kernels.prepare(labels, copy), 100, T), queries, labels, 100, T)


@pytest.mark.parametrize("spread", [1.0, 0.3, 0.02])
def test_scan_of_clustered_labels_with_near_duplicates(scanning, spread):
    kernels, copy = scanning
    labels = clustered(17_003, 32, 0, spread)
    queries = normalize(labels[5:3000:100] + 0.1 * random_rows(30, 32, 7), dim=1)
    agree(kernels.scan(queries, kernels.prepare(labels, copy), 50, T), queries, labels, 50, T)


@pytest.mark.parametrize("norm", [1e-3, 30.0])
def test_scan_of_rows_that_are_not_unit(scanning, norm):
    kernels, copy = scanning
    labels = norm * random_rows(16_500, 24, 0) * torch.rand(16_500, 1, generator=torch.Generator().manual_seed(2))
    queries = random_rows(9, 24, 1)
    agree(kernels.scan(queries, kernels.prepare(labels, copy), 10, 1.0), queries, labels, 10, 1.0)


def test_exact_duplicates_come_in_the_order_of_their_ids(scanning):
    kernels, copy = scanning
    labels = random_rows(3, 20, 0)[torch.arange(17_000) % 3]
    answer = kernels.scan(labels[:2], kernels.prepare(labels, copy), 40, T)
    assert torch.equal(answer.ids, torch.stack([torch.arange(40) * 3, torch.arange(40) * 3 + 1]))


def test_zero_rows_score_zero_in_order(scanning):
    kernels, copy = scanning
    prepared = kernels.prepare(torch.zeros(16_400, 8), copy)
    answer = kernels.scan(torch.zeros(2, 8), prepared, 5, T)
    assert torch.equal(answer.ids, torch.arange(5).repeat(2, 1))
    assert (answer.scores == 0).all()
    assert torch.allclose(answer.log_z.double(), torch.full((2,), math.log(16_400), dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize(("count", "k"), [(1, 1), (1, 5), (7, 7), (5, 9), (33, 2)])
def test_few_labels_pad_with_nothing(scanning, count, k):
    kernels, copy = scanning
    labels, queries = random_rows(count, 5, 0), random_rows(6, 5, 1)
    answer = kernels.scan(queries, kernels.prepare(labels, copy), k, T)
    assert answer.ids.shape == answer.scores.shape == (6, k)
    kept = min(k, count)
    agree(type(answer)(answer.ids[:, :kept], answer.scores[:, :kept], answer.log_z), queries, labels, kept, T)
    assert (answer.ids[:, kept:] == -1).all() and (answer.scores[:, kept:] == -math.inf).all()


def test_no_queries(kernels):
    prepared = kernels.prepare(random_rows(10, 4, 0))
    answer = kernels.scan(torch.empty(0, 4), prepared, 3, T)
    assert answer.ids.shape == (0, 3) and answer.log_z.shape == (0,)
    answer = kernels.rescore(torch.empty(0, 4), prepared, torch.empty(0, 3, dtype=torch.int64), T)
    assert answer.ids.shape == (0, 3)


def test_float16_and_non_contiguous_inputs(kernels):
    labels = random_rows(40, 2 * 10, 0)[::2, ::2]
    queries = random_rows(10, 9, 1).T[:, :].contiguous().T[:, :][:, :9]
    labels = torch.cat([labels, labels], 1)[:, :9]
    agree(kernels.scan(queries, kernels.prepare(labels), 5, T), queries, labels, 5, T)
    half, rows = labels.half(), queries.half()
    agree(kernels.scan(rows, kernels.prepare(half), 5, T), rows, half, 5, T)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_queries_that_are_not_finite_are_refused(kernels, bad):
    prepared = kernels.prepare(random_rows(10, 4, 0))
    queries = random_rows(3, 4, 1)
    queries[1, 2] = bad
    with pytest.raises(ValueError, match="row 1"):
        kernels.scan(queries, prepared, 3, T)
    with pytest.raises(ValueError, match="row 1"):
        kernels.rescore(queries, prepared, torch.zeros(3, 2, dtype=torch.int64), T)
    with pytest.raises(ValueError, match="finite"):
        kernels.prepare(queries)


def test_what_makes_no_sense_is_refused_in_one_line(kernels):
    prepared = kernels.prepare(random_rows(10, 4, 0))
    for call in (
        lambda: kernels.scan(random_rows(2, 5, 0), prepared, 3, T),
        lambda: kernels.scan(random_rows(2, 4, 0), prepared, 0, T),
        lambda: kernels.scan(random_rows(2, 4, 0), prepared, 3, 0.0),
        lambda: kernels.rescore(random_rows(2, 4, 0), prepared, torch.tensor([[10], [0]]), T),
        lambda: kernels.prepare(random_rows(10, 4, 0), "float8"),
        lambda: choose(backend="fortran"),
    ):
        with pytest.raises(InputError):
            call()


def test_rescore_sorts_candidates_and_sums_over_them(kernels):
    labels, queries = random_rows(500, 19, 0), random_rows(7, 19, 1)
    ids = torch.stack([torch.randperm(500, generator=torch.Generator().manual_seed(i))[:60] for i in range(7)])
    ids[:, 50:] = -1
    ids[3] = -1
    before = ids.clone()
    answer = kernels.rescore(queries, kernels.prepare(labels), ids, T)
    assert torch.equal(ids, before)
    for row in range(7):
        known = ids[row][ids[row] >= 0].sort().values
        scores, order = torch.sort(labels.double()[known] @ queries[row].double(), descending=True, stable=True)
        assert torch.equal(answer.ids[row, : len(known)], known[order])
        assert torch.allclose(answer.scores[row, : len(known)].double(), scores, atol=1e-6)
        assert (answer.ids[row, len(known) :] == -1).all() and (answer.scores[row, len(known) :] == -math.inf).all()
        assert answer.log_z[row].item() == pytest.approx(torch.logsumexp(scores / T, 0).item(), abs=1e-5)


def test_scan_and_rescore_agree(kernels):
    labels, queries = random_rows(300, 16, 0), random_rows(4, 16, 1)
    prepared = kernels.prepare(labels)
    scanned = kernels.scan(queries, prepared, 300, T)
    rescored = kernels.rescore(queries, prepared, torch.arange(300).repeat(4, 1), T)
    assert torch.equal(scanned.ids, rescored.ids)
    assert torch.allclose(scanned.log_z, rescored.log_z, atol=1e-5)


def pairs(batch: int, count: int) -> Positives:
    rows = [[(3 * i + j) % count for j in range(i % 4)] for i in range(batch)]
    return Positives.from_rows(rows, count)


def test_differentiable_operations_equal_their_definition(kernels):
    queries, labels = (random_rows(n, 6, n).double().requires_grad_() for n in (9, 31))
    positives = pairs(9, 31)
    scores = queries @ labels.T / T
    mask = torch.from_numpy(positives.matrix().toarray() > 0)
    expected = torch.logsumexp(scores.masked_fill(mask, -math.inf), 1)
    found = kernels.negative_lse(queries, labels, positives, T)
    assert torch.allclose(found.double(), expected, rtol=1e-6)
    weights = torch.linspace(-1, 1, 9, dtype=torch.float64)
    for got, want in zip(
        torch.autograd.grad((found * weights).sum(), (queries, labels)),
        torch.autograd.grad((expected * weights).sum(), (queries, labels)),
        strict=True,
    ):
        assert torch.allclose(got, want, rtol=1e-6, atol=1e-9)
    t = kernels.topk_threshold(queries, labels, 5, 2.0, T)
    sums = torch.sigmoid(2 * (queries @ labels.T / T + t[:, None])).sum(1)
    assert torch.allclose(sums, torch.full_like(sums, 5), atol=1e-6)
    assert torch.autograd.gradcheck(lambda q, y: kernels.topk_threshold(q, y, 5, 2.0, 1.0), (queries, labels))


def test_rows_without_negatives_and_thresholds_beyond_all_labels(kernels):
    queries, labels = (random_rows(n, 4, n).requires_grad_() for n in (2, 3))
    found = kernels.negative_lse(queries, labels, Positives.from_rows([[0, 1, 2], [1]], 3), T)
    assert found[0] == -math.inf and torch.isfinite(found[1])
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(found[1], (queries, labels)))
    assert (kernels.topk_threshold(queries, labels, 3, 2.0, T) == math.inf).all()


def test_softmax_equals_torch_and_knows_minus_infinity(kernels):
    scores = 30 * torch.randn(5, 1003, generator=torch.Generator().manual_seed(0))
    scores[0] = -math.inf
    scores[1, ::2] = -math.inf
    scores[2] = 3e38
    scores[3] = -3e38
    scores[3, 7] = 3e38
    before = scores.clone()
    found = kernels.softmax(scores, 0.7)
    expected = torch.softmax(scores.double() / 0.7, -1).nan_to_num(0.0)
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-30)
    assert torch.equal(scores, before)
    assert kernels.softmax(torch.empty(0, 4)).shape == (0, 4)
    assert torch.allclose(kernels.softmax(scores[4]), torch.softmax(scores[4], -1), rtol=1e-5)
