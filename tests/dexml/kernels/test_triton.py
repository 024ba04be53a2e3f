"""The Triton kernels against float64: on a GPU where there is one, else in Triton's interpreter, else not at all."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from dexml.kernels import KERNELS
from dexml.kernels.reference import ReferenceKernels
from dexml.losses import LOSSES
from dexml.losses.base import ScoreLoss
from dexml.types import Positives, Problem

ROOT = Path(__file__).resolve().parents[3]
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
T = 0.05

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels know when they are defined whether they are interpreted; both imports below must see the variable."""
    if GPU:
        return
    before = sys.modules.get("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    if before is not None and "dexml.kernels.triton_tiles" not in sys.modules:
        pytest.skip("something imported triton before its interpreter was asked for; run with TRITON_INTERPRET=1")


@pytest.fixture
def kernels():
    reason = KERNELS["triton"].unsupported(Problem(DEVICE))
    if reason is not None:
        pytest.skip(reason)
    return KERNELS.build("triton")


def rows(count: int, dimension: int, seed: int, norm: float = 1.0) -> torch.Tensor:
    return norm * normalize(torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)), dim=1)


def check_scan(answer, queries, labels, k, temperature=T):
    scores = queries.double() @ labels.double().T
    ordered, ids = torch.sort(scores, dim=1, descending=True, stable=True)
    kept = min(k, len(labels))
    assert answer.ids.shape == answer.scores.shape == (len(queries), k)
    assert torch.equal(answer.ids[:, :kept].cpu(), ids[:, :kept])
    assert torch.allclose(answer.scores[:, :kept].cpu().double(), ordered[:, :kept], rtol=1e-6, atol=1e-6)
    assert (answer.ids[:, kept:] == -1).all() and (answer.scores[:, kept:] == -math.inf).all()
    assert (answer.log_z.cpu().double() - torch.logsumexp(scores / temperature, 1)).abs().max() <= 1e-4


@pytest.mark.parametrize("copy", ["none", "int16"])
@pytest.mark.parametrize(
    ("batch", "count", "dimension", "k"), [(1, 1, 5, 1), (2, 7, 3, 9), (3, 700, 33, 10), (17, 900, 16, 5), (66, 130, 24, 3)]
)
def test_scan_is_exact(kernels, copy, batch, count, dimension, k):
    queries, labels = rows(batch, dimension, 0), rows(count, dimension, 1)
    prepared = kernels.prepare(labels.to(DEVICE), copy)
    assert prepared.copy == copy
    check_scan(kernels.scan(queries.to(DEVICE), prepared, k, T), queries, labels, k)


@pytest.mark.parametrize("copy", ["none", "int16"])
@pytest.mark.parametrize(("count", "k", "searched"), [(1500, 40, 0), (3000, 4, 2)])
def test_what_a_pass_does_not_prove_is_searched_again(kernels, copy, count, k, searched):
    labels = rows(2, 8, 0)[torch.arange(count) % 2]  # the k-th best is as good as any later one
    queries = labels[:2] + 0.01 * rows(2, 8, 3)
    answer = kernels.scan(queries.to(DEVICE), kernels.prepare(labels.to(DEVICE), copy), k, T)
    assert torch.equal(answer.ids[0].cpu(), torch.arange(k) * 2)
    assert torch.equal(answer.ids[1].cpu(), torch.arange(k) * 2 + 1)
    assert (kernels.widened, kernels.searched) == (2, searched)


def test_near_duplicates_keep_the_order_of_float64(kernels):
    labels = rows(60, 24, 0)[torch.arange(1200) % 60] + 1e-5 * rows(1200, 24, 1)
    queries = rows(5, 24, 2)
    check_scan(kernels.scan(queries.to(DEVICE), kernels.prepare(labels.to(DEVICE), "int16"), 30, T), queries, labels, 30)


def test_slabs_of_queries_are_put_together(kernels, monkeypatch):
    from dexml.kernels import triton_scan

    monkeypatch.setattr(triton_scan, "SLAB", 4)
    queries, labels = rows(10, 6, 0), rows(90, 6, 1)
    check_scan(kernels.scan(queries.to(DEVICE), kernels.prepare(labels.to(DEVICE)), 4, T), queries, labels, 4)


def test_float16_non_contiguous_and_zero_rows(kernels):
    labels = rows(80, 20, 0)[::2, ::2].half()
    labels[3] = 0
    queries = rows(6, 20, 1).T[::2].T.half()
    prepared = kernels.prepare(labels.to(DEVICE))
    check_scan(kernels.scan(queries.to(DEVICE), prepared, 5, T), queries, labels, 5)
    zero = kernels.scan(torch.zeros(2, 10, device=DEVICE), prepared, 3, T)
    assert torch.equal(zero.ids.cpu(), torch.arange(3).repeat(2, 1))
    empty = kernels.scan(torch.empty(0, 10, device=DEVICE), prepared, 3, T)
    assert empty.ids.shape == (0, 3) and empty.log_z.shape == (0,)


def test_queries_that_are_not_finite_are_refused(kernels):
    prepared = kernels.prepare(rows(9, 4, 0).to(DEVICE))
    queries = rows(3, 4, 1)
    queries[1, 2] = math.nan
    with pytest.raises(ValueError, match="row 1"):
        kernels.scan(queries.to(DEVICE), prepared, 2, T)


def test_rescore_reads_candidates_in_place(kernels):
    queries, labels = rows(4, 130, 0), rows(50, 130, 1)
    ids = torch.stack([torch.randperm(50, generator=torch.Generator().manual_seed(i))[:37] for i in range(4)])
    ids[1, 5:9], ids[2] = -1, -1
    answer = kernels.rescore(queries.to(DEVICE), kernels.prepare(labels.to(DEVICE)), ids.to(DEVICE), T)
    expected = ReferenceKernels().rescore(queries.double(), ReferenceKernels().prepare(labels.double()), ids, T)
    assert torch.equal(answer.ids.cpu(), expected.ids)
    assert torch.allclose(answer.scores.cpu().double(), expected.scores, atol=1e-6)
    assert torch.allclose(answer.log_z.cpu().double(), expected.log_z, atol=1e-5)


def test_softmax_over_all_exponents_of_float32(kernels):
    generator = torch.Generator().manual_seed(0)
    exponents = torch.arange(-126, 128)
    signs = torch.randint(0, 2, (254, 1500), generator=generator) * 2.0 - 1
    scores = torch.ldexp(signs * (1 + torch.rand(254, 1500, generator=generator)) / 2, exponents[:, None])
    scores[0], scores[1, 5:] = -math.inf, -math.inf
    scores = torch.cat([scores, torch.full((1, 1500), 3.4e38)])
    for temperature in (1.0, 0.01):
        found = kernels.softmax(scores[::4].to(DEVICE), temperature).cpu()
        expected = torch.softmax(scores[::4].double() / temperature, -1).nan_to_num(0.0)
        assert torch.allclose(found.double(), expected, rtol=2e-6, atol=1e-37)
    long = 40 * torch.randn(2, 30_001, generator=generator)
    assert torch.allclose(kernels.softmax(long.to(DEVICE)).cpu().double(), torch.softmax(long.double(), -1), rtol=2e-6)
    assert kernels.softmax(torch.empty(0, 4, device=DEVICE)).shape == (0, 4)


B, L, D = 7, 300, 20
ROWS = [[0, 3], [7], [], list(range(L)), [299, 128, 127], [64, 63], [5]]


def inputs(norm: float = 1.0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    made = rows(B, D, 0, norm), rows(L, D, 1)
    return [m.to(DEVICE).requires_grad_() for m in made], [m.double().requires_grad_() for m in made]


def near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    found = found.detach().cpu().double()
    finite = torch.isfinite(expected)
    return torch.equal(found[~finite], expected[~finite]) and bool(
        (found - expected)[finite].norm() <= tolerance * expected[finite].norm()
    )


@pytest.mark.parametrize(("operation", "norm"), [("negative_lse", 1.0), ("negative_lse", 30.0), ("topk_threshold", 1.0)])
def test_row_sums_and_their_gradients(kernels, operation, norm):
    single, double = inputs(norm)
    positives = Positives.from_rows(ROWS, L)
    weights = torch.linspace(-1, 2, B, dtype=torch.float64)

    def of(backend, queries, labels):
        if operation == "negative_lse":
            return backend.negative_lse(queries, labels, positives, T)
        return backend.topk_threshold(queries, labels, 5, 2.0, T)

    found, expected = of(kernels, *single), of(ReferenceKernels(), *double)
    assert near(found, expected.detach())
    of_found = torch.autograd.grad((found.masked_fill(found.isinf(), 0) * weights.to(found)).sum(), single)
    of_expected = torch.autograd.grad((expected.masked_fill(expected.isinf(), 0) * weights).sum(), double)
    assert all(near(f, e) for f, e in zip(of_found, of_expected, strict=True))


def test_threshold_lets_k_labels_through_where_sigmoids_saturate(kernels):
    single, double = inputs(30.0)
    t = kernels.topk_threshold(*single, 5, 2.0, T)
    through = torch.sigmoid(2 * (double[0] @ double[1].T / T + t.detach().cpu().double()[:, None])).sum(1)
    assert torch.allclose(through, torch.full_like(through, 5.0), rtol=1e-4)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(t.sum(), single))


@pytest.mark.parametrize("name", [name for name in LOSSES if issubclass(LOSSES[name], ScoreLoss)])
@pytest.mark.parametrize(("products", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_losses_equal_their_formulas(kernels, name, products, tolerance):
    single, double = inputs()
    positives = Positives.from_rows(ROWS, L)
    before = [s.detach().clone() for s in single]
    loss = LOSSES.build(name, {"temperature": T, "products": products})
    assert (loss.serving(*single), loss.serving(*double)) == ("triton", "reference")
    found, expected = loss(*single, positives), loss(*double, positives)
    assert found.item() == pytest.approx(expected.item(), rel=tolerance)
    gradients = torch.autograd.grad(found, single), torch.autograd.grad(expected, double)
    assert all(near(f, e, tolerance) for f, e in zip(*gradients, strict=True))
    assert all(torch.equal(s, b) for s, b in zip(single, before, strict=True))


@pytest.mark.parametrize(("bounded", "keep"), [(0.0, 0), (50.0, 0), (50.0, 9000), (50.0, 1 << 30)])
def test_decoupled_softmax_is_the_same_however_it_is_cut(kernels, monkeypatch, bounded, keep):
    from dexml.kernels import triton_losses, triton_rows, triton_sums

    monkeypatch.setattr(triton_sums, "BOUNDED", bounded)
    monkeypatch.setattr(triton_sums, "KEEP_BYTES", keep)
    monkeypatch.setattr(triton_rows, "SLAB_BYTES", 8000)  # two slabs of labels
    single, double = inputs()
    positives = Positives.from_rows(ROWS, L)
    found = triton_losses.decoupled_softmax(*single, positives, T, products="float32")
    expected = LOSSES.build("decoupled_softmax", {"temperature": T})(*double, positives)
    gradients = torch.autograd.grad(expected, double)
    assert all(near(f, e) for f, e in zip(torch.autograd.grad(found, single, retain_graph=True), gradients, strict=True))
    again = torch.autograd.grad(found, single)
    assert all(near(f, e) for f, e in zip(again, gradients, strict=True)), "a second backward pass weighs anew"


def test_shares_mask_positives_without_making_negatives_of_them(kernels):
    from dexml.kernels.triton_losses import decoupled_softmax

    single, double = inputs()
    positives = Positives.from_rows(ROWS, L)
    shares = torch.zeros(len(positives.indices), device=DEVICE)
    shares[positives.indptr[0] + 1] = 1.0
    found = decoupled_softmax(*single, positives, T, shares, products="float32")
    scores = (double[0] @ double[1].T / T)[0]
    negatives = torch.logsumexp(scores[[3, *(j for j in range(L) if j not in (0, 3))]], 0)
    assert found.item() == pytest.approx((negatives - scores[3]).item() / B, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in LOSSES if issubclass(LOSSES[name], ScoreLoss)])
@pytest.mark.parametrize("given", [[], [[], []]])
def test_no_queries_or_no_positives(kernels, name, given):
    queries = rows(len(given), 4, 0).to(DEVICE).requires_grad_()
    labels = rows(9, 4, 1).to(DEVICE).requires_grad_()
    value = LOSSES.build(name)(queries, labels, Positives.from_rows(given, 9))
    assert value.item() == 0
    assert all((g == 0).all() for g in torch.autograd.grad(value, (queries, labels)))


class OnAGpu:
    """What a loss asks of a tensor before it chooses a backend, without the GPU."""

    device, dtype, shape = torch.device("cuda"), torch.float32, (3, 4)

    def __len__(self) -> int:
        return self.shape[0]


def test_a_loss_on_a_gpu_is_computed_by_triton_where_it_is_there_and_by_torch_else(monkeypatch, caplog):
    caplog.set_level("INFO", "dexml.losses.base")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loss = LOSSES.build("softmax")
    assert loss.serving(OnAGpu(), OnAGpu()) == "triton"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loss.serving(OnAGpu(), OnAGpu()) == "reference"
    assert [record.message.split(";")[:2] for record in caplog.records] == [
        ["Softmax by the triton kernels"],
        ["Softmax by the reference kernels", " triton: torch sees no NVIDIA GPU"],
    ]


def test_it_says_why_it_cannot_serve(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend = KERNELS["triton"]
    assert "not on cpu" in str(backend.unsupported(Problem("cpu")))
    assert GPU or "no NVIDIA GPU" in str(backend.unsupported(Problem("cuda")))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.unsupported(Problem("cpu")) is None
    assert "float64" in str(backend.unsupported(Problem("cpu", torch.float64)))


def test_every_kernel_compiles_for_hopper(tmp_path):
    """The interpreter forgives what the compiler does not; no GPU is needed for this."""
    if not list(Path(importlib.util.find_spec("triton").origin).parent.glob("backends/nvidia/bin/ptxas*")):
        pytest.skip("this triton has no NVIDIA compiler")
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu_compile.py", "--first", "--only", "B=16|rescore|softmax|bfloat16"],
        env=without | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DOES NOT FIT" not in done.stdout
