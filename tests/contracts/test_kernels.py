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


SCANNED = {"triton": ("auto", "none", "int16"), "numba": COPIES, "reference": ("auto",)}


def available(name: str) -> Kernels:
    reason = KERNELS[name].unsupported(Problem(needs_grad=True))
    if reason is not None:
        pytest.skip(f"{name} {reason}")
    return KERNELS.build(name)


@pytest.fixture(params=list(KERNELS))
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return available(request.param)


@pytest.fixture(params=[(name, copy) for name in KERNELS for copy in SCANNED[name]], ids="-".join)
def scanning(request: pytest.FixtureRequest) -> tuple[Kernels, str]:
    """A backend with each scanning copy that it makes."""
    name, copy = request.param
    return available(name), copy


def many(kernels: Kernels, count: int) -> int:
    """Return `count` labels, and an eighth of them where Triton's interpreter goes through them."""
    return count // 8 if isinstance(kernels, KERNELS["triton"]) else count


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
    labels = random_rows(many(kernels, 20_011), 52, 0)
    queries = random_rows(batch, 52, 1)
    agree(kernels.scan(queries, kernels.prepare(labels, copy), 100, T), queries, labels, 100, T)


@pytest.mark.parametrize("spread", [1.0, 0.3, 0.02])
def test_scan_of_clustered_labels_with_near_duplicates(scanning, spread):
    kernels, copy = scanning
    labels = clustered(many(kernels, 17_003), 32, 0, spread)
    queries = normalize(labels[5:2000:67] + 0.1 * random_rows(30, 32, 7), dim=1)
    agree(kernels.scan(queries, kernels.prepare(labels, copy), 50, T), queries, labels, 50, T)


@pytest.mark.parametrize("norm", [1e-3, 30.0])
def test_scan_of_rows_that_are_not_unit(scanning, norm):
    kernels, copy = scanning
    count = many(kernels, 16_500)
    labels = norm * random_rows(count, 24, 0) * torch.rand(count, 1, generator=torch.Generator().manual_seed(2))
    queries = random_rows(9, 24, 1)
    agree(kernels.scan(queries, kernels.prepare(labels, copy), 10, 1.0), queries, labels, 10, 1.0)


def test_exact_duplicates_come_in_the_order_of_their_ids(scanning):
    kernels, copy = scanning
    labels = random_rows(3, 20, 0)[torch.arange(many(kernels, 17_000)) % 3]
    answer = kernels.scan(labels[:2], kernels.prepare(labels, copy), 40, T)
    assert torch.equal(answer.ids, torch.stack([torch.arange(40) * 3, torch.arange(40) * 3 + 1]))


def test_zero_rows_score_zero_in_order(scanning):
    kernels, copy = scanning
    count = many(kernels, 16_400)
    prepared = kernels.prepare(torch.zeros(count, 8), copy)
    answer = kernels.scan(torch.zeros(2, 8), prepared, 5, T)
    assert torch.equal(answer.ids, torch.arange(5).repeat(2, 1))
    assert (answer.scores == 0).all()
    assert torch.allclose(answer.log_z.double(), torch.full((2,), math.log(count), dtype=torch.float64), atol=1e-4)


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
    ids = torch.arange(20).expand(len(rows), -1)
    agree(kernels.rescore(rows, kernels.prepare(half), ids, T), rows, half, 20, T)


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


def operation(name: str, positives: Positives, k: int = 5):
    """Return negative_lse or topk_threshold (α = 2) as a function of a backend, queries and labels."""
    if name == "negative_lse":
        return lambda kernels, queries, labels: kernels.negative_lse(queries, labels, positives, T)
    return lambda kernels, queries, labels: kernels.topk_threshold(queries, labels, k, 2.0, T)


def check_row_sums(kernels: Kernels, of, queries: torch.Tensor, labels: torch.Tensor, tolerance: float) -> None:
    """Hold an operation's finite values and gradients to those of the reference in float64, and infinite ones to the same."""
    queries, labels = queries.detach().requires_grad_(), labels.detach().requires_grad_()
    found, expected = of(kernels, queries, labels), of(KERNELS.build("reference"), queries.double(), labels.double())
    finite = expected.isfinite()
    assert found.shape == (len(queries),) and torch.equal(found[~finite].double(), expected[~finite])
    assert torch.allclose(found[finite].double(), expected[finite], rtol=tolerance, atol=tolerance)
    weights = torch.linspace(-1, 2, len(queries), dtype=torch.float64)
    sums = (torch.where(finite, values, 0.0) * weights.to(values) for values in (found, expected))
    gradients = [torch.autograd.grad(values.sum(), (queries, labels)) for values in sums]
    for got, want in zip(*gradients, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape and torch.isfinite(got).all()
        rounding = torch.finfo(got.dtype).eps
        assert (got.double() - want.double()).norm() <= max(tolerance, rounding) * want.double().norm() + 1e-12


OPERATIONS = ["negative_lse", "topk_threshold"]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("number", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("batch", "count", "dimension"), [(9, 31, 6), (3, 700, 33), (21, 300, 48), (1, 6, 1)])
def test_row_sums_and_their_gradients(kernels, name, number, tolerance, batch, count, dimension):
    queries, labels = (random_rows(n, dimension, n).to(number) for n in (batch, count))
    check_row_sums(kernels, operation(name, pairs(batch, count)), queries, labels, tolerance)


@pytest.mark.parametrize("name", OPERATIONS)
def test_row_sums_pass_gradcheck(kernels, name):
    queries, labels = (random_rows(n, 6, n).double().requires_grad_() for n in (9, 31))
    of = operation(name, pairs(9, 31))
    assert torch.autograd.gradcheck(lambda q, y: of(kernels, q / 5, y), (queries, labels))


def test_a_threshold_lets_k_labels_through(kernels):
    for norm in (1.0, 30.0):  # at 30, sigmoids are 0 or 1 but for one or two
        queries, labels = norm * random_rows(9, 6, 0), random_rows(300, 6, 1)
        t = kernels.topk_threshold(queries, labels, 5, 2.0, T)
        sums = torch.sigmoid(2 * (queries.double() @ labels.double().T / T + t.double()[:, None])).sum(1)
        assert torch.allclose(sums, torch.full_like(sums, 5), rtol=1e-4)


@pytest.mark.parametrize("name", OPERATIONS)
def test_row_sums_of_scores_that_are_large(kernels, name):
    queries, labels = (30 * random_rows(7, 20, 0)).requires_grad_(), random_rows(300, 20, 1).requires_grad_()
    of = operation(name, pairs(7, 300))
    if name == "negative_lse":
        check_row_sums(kernels, of, queries, labels, 2e-5)
    else:  # where the threshold stands between two labels, float32 does not tell by how little it moves
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(of(kernels, queries, labels).sum(), (queries, labels)))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("batch", "count", "k"), [(0, 5, 2), (3, 1, 1), (3, 5, 5), (3, 5, 9)])
def test_row_sums_of_no_queries_and_of_few_labels(kernels, name, batch, count, k):
    positives = Positives.from_rows([[0], [], range(count)][:batch], count)  # the last row has no negatives
    queries, labels = random_rows(batch, 4, 0), random_rows(count, 4, 1)
    check_row_sums(kernels, operation(name, positives, k), queries, labels, 1e-5)


@pytest.mark.parametrize("name", OPERATIONS)
def test_row_sums_of_duplicate_zero_and_non_contiguous_rows(kernels, name):
    queries, labels = random_rows(7, 20, 0)[:, ::2], random_rows(10, 80, 1).T
    labels[[1, 5]], labels[[2, 8]], queries[3] = labels[0].clone(), 0.0, 0.0
    assert not queries.is_contiguous() and not labels.is_contiguous()
    check_row_sums(kernels, operation(name, pairs(7, 80)), queries, labels, 1e-5)


@pytest.mark.parametrize("name", OPERATIONS)
def test_row_sums_of_float16_rows_are_float32(kernels, name):
    queries, labels = random_rows(7, 10, 0).half(), random_rows(80, 10, 1).half()
    of = operation(name, pairs(7, 80))
    assert of(kernels, queries, labels).dtype == torch.float32
    check_row_sums(kernels, of, queries, labels, 1e-5)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_row_sums_of_queries_that_are_not_finite_are_refused(kernels, name, bad):
    queries, labels = random_rows(3, 4, 1), random_rows(10, 4, 0)
    queries[1, 2] = bad
    with pytest.raises(InputError, match="row 1"):
        operation(name, pairs(3, 10))(kernels, queries, labels)


def test_row_sums_that_make_no_sense_are_refused(kernels):
    queries, labels = random_rows(3, 4, 1), random_rows(10, 4, 0)
    for call in (
        lambda: kernels.negative_lse(queries, labels, pairs(3, 11), T),
        lambda: kernels.negative_lse(queries, labels, pairs(2, 10), T),
        lambda: kernels.negative_lse(queries, labels[:, :3], pairs(3, 10), T),
        lambda: kernels.negative_lse(queries, labels, pairs(3, 10), 0.0),
        lambda: kernels.topk_threshold(queries, labels, 0, 2.0, T),
        lambda: kernels.topk_threshold(queries, labels[0], 3, 2.0, T),
    ):
        with pytest.raises(InputError):
            call()


@pytest.mark.parametrize("name", OPERATIONS)
def test_row_sums_make_no_score_matrix(kernels, name, largest_tensor):
    if isinstance(kernels, KERNELS["reference"]):
        pytest.skip("it is the one that holds it")
    batch, count, dimension = 64, 2500, 6
    queries, labels = (random_rows(n, dimension, n).requires_grad_() for n in (batch, count))
    of, backend = operation(name, pairs(batch, count)), "triton" if isinstance(kernels, KERNELS["triton"]) else "numba"
    largest = largest_tensor(backend, lambda: torch.autograd.grad(of(kernels, queries, labels).sum(), (queries, labels)))
    assert 4 * dimension * count <= largest <= 4 * batch * count / 4, "at least the gradient by the labels, far from the scores"


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


def test_softmax_of_odd_inputs(kernels):
    for shape in ((0, 4), (3, 0), (2, 1), (1, 17), (2, 3, 5)):
        scores = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(kernels.softmax(scores), torch.softmax(scores, -1), rtol=1e-5)
    columns = torch.randn(7, 40, generator=torch.Generator().manual_seed(2)).T[::2]
    assert torch.allclose(kernels.softmax(columns, 0.3), torch.softmax(columns / 0.3, -1), rtol=1e-5)
    assert torch.allclose(kernels.softmax(columns.half()), torch.softmax(columns.half().float(), -1), rtol=1e-5)
    assert kernels.softmax(columns.half()).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_softmax_refuses_a_temperature_that_is_none(kernels, temperature):
    with pytest.raises(InputError, match="temperature must be a finite number above 0"):
        kernels.softmax(torch.ones(2, 3), temperature)
