"""Every Triton kernel against the reference in float64, on tiny shapes: on a GPU or in Triton's interpreter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dexml.kernels.reference import ReferenceKernels
from dexml.losses import LOSSES
from dexml.types import Positives

T = 0.05
Check = dict[str, Any]


def rows(count: int, dimension: int, seed: int) -> Tensor:
    """Return random unit rows, float32 (count, dimension), the same on every machine."""
    return normalize(torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)), dim=1)


def some_positives(batch: int, count: int) -> Positives:
    """Return 0 to 4 positives a row, and one row with every label."""
    given = [[(7 * i + 31 * j) % count for j in range(i % 5)] for i in range(batch - 1)]
    return Positives.from_rows([*given, list(range(count))], count)


def error(found: Tensor, expected: Tensor) -> float:
    """Return ‖found − expected‖ / ‖expected‖ over the finite numbers; ∞ where the infinite ones differ."""
    found, expected = found.detach().cpu().double(), expected.detach().double()
    finite = torch.isfinite(expected)
    if not torch.equal(found[~finite], expected[~finite]):
        return math.inf
    return float((found - expected)[finite].norm() / expected[finite].norm().clamp(min=1e-30))


@contextmanager
def first_configuration() -> Iterator[None]:
    """Let every kernel run with the first of its configurations: tuning for tiny shapes would take minutes."""
    from dexml.kernels import triton_pairs, triton_rescore, triton_rows, triton_scan, triton_softmax

    modules = (triton_pairs, triton_rescore, triton_rows, triton_scan, triton_softmax)
    tuned = [kernel for module in modules for kernel in vars(module).values() if hasattr(kernel, "configs")]
    before = [kernel.configs for kernel in tuned]
    for kernel in tuned:
        kernel.configs = kernel.configs[:1]
    try:
        yield
    finally:
        for kernel, configs in zip(tuned, before, strict=True):
            kernel.configs = configs
            kernel.cache.clear()


def run_checks(device: str, found: list[Check]) -> None:
    """Add name, error, tolerance and verdict of every check to `found`, and print each; an exception is a verdict too."""
    everything = list(checks(device))
    with first_configuration():
        for number, (name, tolerance, call) in enumerate(everything, 1):
            start = time.perf_counter()
            value: float | str
            try:
                value = call()
                passed = value <= tolerance
            except Exception as problem:  # a kernel that does not run is what this is here to find
                value, passed = f"{type(problem).__name__}: {problem}"[:500], False
            found.append({"check": name, "error": value, "tolerance": tolerance, "passed": passed})
            verdict = "ok" if passed else f"WRONG: {value} (allowed {tolerance})"
            took = time.perf_counter() - start
            print(f"check {number:2} of {len(everything)}  {name:60} {verdict}  {took:.1f} s", flush=True)


def checks(device: str) -> Iterator[tuple[str, float, Callable[[], float]]]:
    """Yield what is checked, how far it may be off, and the call that measures it."""
    yield from _searches(device)
    yield from _row_sums(device)


def _searches(device: str) -> Iterator[tuple[str, float, Callable[[], float]]]:
    from dexml.kernels import KERNELS

    kernels, reference = KERNELS["triton"](), ReferenceKernels()

    def scan(copy: str, batch: int, labels: Tensor, k: int) -> float:
        queries = rows(batch, labels.shape[1], 0)
        answer = kernels.scan(queries.to(device), kernels.prepare(labels.to(device), copy), k, T)
        expected = reference.scan(queries.double(), reference.prepare(labels.double()), k, T)
        wrong = int((answer.ids.cpu() != expected.ids).sum())
        assert answer.log_z is not None and expected.log_z is not None
        off = float((answer.log_z.cpu().double() - expected.log_z).abs().max()) if batch else 0.0
        return wrong + off

    doubled = rows(3, 20, 5)[torch.arange(900) % 3]
    shapes = [
        (1, rows(1, 5, 1), 3),
        (3, rows(777, 33, 1), 20),
        (40, rows(500, 32, 1), 7),
        (2, doubled, 4),
        (0, rows(9, 4, 1), 2),
    ]
    for copy in ("none", "int16"):
        for batch, labels, k in shapes:
            size = f"{batch} × {len(labels)} × {labels.shape[1]}, k={k}"
            call = (lambda c, b, y, n: lambda: scan(c, b, y, n))(copy, batch, labels, k)
            yield f"scan {size}, {copy}: ids exact, log_z", 1e-4, call

    def rescore() -> float:
        queries, labels = rows(6, 130, 0), rows(99, 130, 1)
        ids = torch.stack([torch.randperm(99, generator=torch.Generator().manual_seed(i))[:50] for i in range(6)])
        ids[1, 7:], ids[4] = -1, -1
        answer = kernels.rescore(queries.to(device), kernels.prepare(labels.to(device)), ids.to(device), T)
        expected = reference.rescore(queries.double(), reference.prepare(labels.double()), ids, T)
        assert answer.log_z is not None and expected.log_z is not None
        return float((answer.ids.cpu() != expected.ids).sum()) + error(answer.log_z, expected.log_z)

    yield "rescore 6 × 50", 1e-6, rescore
    scores = torch.ldexp(
        torch.rand(64, 1500, generator=torch.Generator().manual_seed(0)) - 0.5, torch.arange(-63, 65)[::2, None]
    )
    scores[0], scores[1, 9:], scores[2] = -math.inf, -math.inf, 3e38
    yield (
        "softmax 64 × 1500",
        1e-6,
        lambda: error(kernels.softmax(scores.to(device), 0.7), reference.softmax(scores.double(), 0.7)),
    )


def _row_sums(device: str) -> Iterator[tuple[str, float, Callable[[], float]]]:
    from dexml.kernels import KERNELS

    kernels, reference = KERNELS["triton"](), ReferenceKernels()
    batch, count, dimension = 9, 333, 36
    positives = some_positives(batch, count)

    def inputs() -> tuple[list[Tensor], list[Tensor]]:
        made = rows(batch, dimension, 0), rows(count, dimension, 1)
        return [m.to(device).requires_grad_() for m in made], [m.double().requires_grad_() for m in made]

    def worst(found: Tensor, expected: Tensor, single: list[Tensor], double: list[Tensor]) -> float:
        """Return the largest error of a value and its two gradients; infinite values give no gradient."""
        weights = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64) if expected.ndim else torch.ones(())
        of_found = (torch.where(found.isfinite(), found, 0.0) * weights.to(found)).sum()
        of_expected = (torch.where(expected.isfinite(), expected, 0.0) * weights).sum()
        gradients = zip(torch.autograd.grad(of_found, single), torch.autograd.grad(of_expected, double), strict=True)
        return max(error(found, expected), *(error(f, e) for f, e in gradients))

    def negative_lse() -> float:
        single, double = inputs()
        found = kernels.negative_lse(single[0], single[1], positives, T)
        return worst(found, reference.negative_lse(double[0], double[1], positives, T), single, double)

    def threshold() -> float:
        single, double = inputs()
        found = kernels.topk_threshold(single[0], single[1], 5, 2.0, T)
        return worst(found, reference.topk_threshold(double[0], double[1], 5, 2.0, T), single, double)

    yield "negative_lse, value and gradients", 1e-5, negative_lse
    yield "topk_threshold, value and gradients", 1e-5, threshold

    def loss(name: str, products: str) -> float:
        """Compare a loss as training calls it, which must have chosen Triton for float32 and the whole matrix for float64."""
        single, double = inputs()
        made: Any = LOSSES[name]
        loss = made(temperature=T, products=products)
        served = loss.serving(*single), loss.serving(*double)
        if served != ("triton", "reference"):
            raise RuntimeError(f"float32 and float64 losses are served by {served}, not by triton and the reference")
        return worst(loss(*single, positives), loss(*double, positives), single, double)

    for name in LOSSES:
        for products, tolerance in (("float32", 1e-5), ("bfloat16", 0.02)):
            call = (lambda n, p: lambda: loss(n, p))(name, products)
            yield f"loss {name}, {products} products, value and gradients", tolerance, call
