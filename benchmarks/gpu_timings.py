"""The timings of `make gpu`: medians of CUDA events after a warm-up, beside torch on the same card in the same run.

Each section yields a row as soon as it is measured, so that what a time limit cuts off is the end of the section alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dexml.kernels import KERNELS
from dexml.losses import LOSSES
from dexml.types import Positives

T, K = 0.05, 100
Row = dict[str, Any]


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def median_ms(call: Callable[[], Any], repeats: int = 11, warm_ups: int = 3) -> float:
    """Return the median milliseconds of a call on the GPU; kernels are compiled and tuned in the warm-up."""
    for _ in range(warm_ups):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        before, after = _event(), _event()
        before.record()
        call()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return float(np.median(times))


def rows(count: int, dimension: int, seed: int) -> Tensor:
    """Return random unit rows, float32 (count, dimension), on the GPU."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return normalize(torch.randn(count, dimension, device="cuda", generator=generator), dim=1)


def positives(batch: int, count: int, each: int = 20) -> Positives:
    """Return about `each` random positives a row."""
    drawn = np.random.default_rng(0).integers(0, count, (batch, each))
    return Positives.from_rows([row.tolist() for row in drawn], count)


def loss_named(name: str, backend: str = "auto") -> Any:
    """Return a loss as training makes it, with bfloat16 products."""
    made: Any = LOSSES[name]
    return made(temperature=T, products="bfloat16", backend=backend)


def rates() -> Iterator[dict[str, float]]:
    """Yield this card's measured bfloat16 matrix rate and its best memory bandwidth, copying (both ways) or reading."""
    left, right = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    product = 2 * 8192**3 / median_ms(lambda: left @ right) / 1e9
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    size = source.numel() * 4
    copied = 2 * size / median_ms(lambda: target.copy_(source)) / 1e6
    read = size / median_ms(lambda: source.sum()) / 1e6
    yield {"bfloat16_tflops": product, "copy_gbs": copied, "read_gbs": read, "bandwidth_gbs": max(copied, read)}


def decoupled_target(rates: dict[str, float]) -> Iterator[Row]:
    """Yield time, memory and share of the matrix rate at B=3,000, L=1,305,265, D=768: three useful products."""
    batch, count, dimension = 3000, 1_305_265, 768
    queries, labels = rows(batch, dimension, 0).requires_grad_(), rows(count, dimension, 1).requires_grad_()
    given = positives(batch, count)
    inputs = torch.cuda.memory_allocated()
    loss = loss_named("decoupled_softmax")

    def forward() -> Tensor:
        value: Tensor = loss(queries, labels, given)
        return value

    def both() -> None:
        torch.autograd.grad(forward(), (queries, labels))

    with torch.no_grad():
        value_only = median_ms(forward, repeats=5, warm_ups=2)
    both_ms = median_ms(both, repeats=5, warm_ups=2)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    both()
    peak = torch.cuda.max_memory_allocated() - inputs - 4 * dimension * (batch + count)
    before, after, end = _event(), _event(), _event()
    before.record()
    value = forward()
    after.record()
    torch.autograd.grad(value, (queries, labels))
    end.record()
    end.synchronize()
    flops = 3 * 2 * batch * count * dimension
    weights = torch.empty(batch, 1 << 17, device="cuda", dtype=torch.bfloat16).uniform_()
    slab, left = labels.detach()[: 1 << 17].bfloat16(), queries.detach().bfloat16()
    scale = count / (1 << 17)
    products = {
        "scores": median_ms(lambda: left @ slab.T) * scale,
        "of_queries": median_ms(lambda: weights @ slab) * scale,
        "of_labels": median_ms(lambda: weights.T @ left) * scale,
    }
    yield {
        "what": f"{batch} × {count} × {dimension}",
        "backend": loss.serving(queries, labels),
        "ms": both_ms,
        "value_only_ms": value_only,
        "forward_ms": before.elapsed_time(after),
        "backward_ms": after.elapsed_time(end),
        "cublas_products_ms": products,
        "share_of_rate": flops / both_ms / 1e9 / rates["bfloat16_tflops"],
        "beyond_gib": peak / 2**30,
        "value": float(value),
    }


def scans(rates: dict[str, float]) -> Iterator[Row]:
    """Yield `scan` beside torch's matrix product, topk and logsumexp in float32; the shapes with a target come first."""
    few, many = (1, 4, 32), (256,)
    kernels = KERNELS["triton"]()
    for count, dimension, batches in ((1_305_265, 768, few), (1_000_000, 384, few + many), (1_305_265, 768, many)):
        labels = rows(count, dimension, 0)
        for copy in ("int16", "none"):
            prepared = kernels.prepare(labels, copy)
            size = count * dimension * (2 if copy == "int16" else 4)
            for batch in batches:
                queries = rows(batch, dimension, 1)
                found = _scan(kernels, queries, labels, prepared, f"{batch} × {count} × {dimension}, {copy}")
                achieved = size / found["ms"] / 1e6
                share = achieved / rates["bandwidth_gbs"]
                yield found | {"batch": batch, "achieved_gbs": achieved, "share_of_bandwidth": share}
            del prepared
        del labels
        torch.cuda.empty_cache()


def _scan(kernels: Any, queries: Tensor, labels: Tensor, prepared: Any, what: str) -> Row:
    def naive() -> tuple[Any, Tensor]:
        scores = queries @ labels.T
        return torch.topk(scores, K, dim=1), torch.logsumexp(scores / T, 1)

    before = kernels.widened, kernels.searched
    answer = kernels.scan(queries, prepared, K, T)
    unproven = kernels.widened - before[0], kernels.searched - before[1]
    few = min(4, len(queries))
    exact = queries[:few].double() @ labels.double().T if len(queries) <= 4 else None
    wrong = None
    if exact is not None:
        wrong = int((answer.ids[:few] != torch.sort(exact, dim=1, descending=True, stable=True).indices[:, :K]).sum())
    ours, theirs = median_ms(lambda: kernels.scan(queries, prepared, K, T)), median_ms(naive)
    note = f"unproven {unproven[0]}, searched in full {unproven[1]}" + (f", {wrong} wrong ids" if wrong else "")
    return {"what": what, "ms": ours, "torch_ms": theirs, "ratio": theirs / ours, "wrong_ids": wrong, "note": note}


def losses() -> Iterator[Row]:
    """Yield the fused losses beside the whole score matrix in torch, bfloat16 operands, forward and backward."""
    queries, labels = rows(3000, 768, 0).requires_grad_(), rows(131_072, 768, 1).requires_grad_()
    given = positives(3000, 131_072)
    for name in LOSSES:
        yield _loss(name, queries, labels, given)


def _loss(name: str, queries: Tensor, labels: Tensor, given: Positives) -> Row:
    values = {"ours": 0.0, "theirs": 0.0}
    fused, whole = loss_named(name), loss_named(name, "reference")

    def ours() -> None:
        value = fused(queries, labels, given)
        torch.autograd.grad(value, (queries, labels))
        values["ours"] = float(value)

    def theirs() -> None:
        value = whole(queries, labels, given)
        torch.autograd.grad(value, (queries, labels))
        values["theirs"] = float(value)

    ms, theirs_ms = median_ms(ours, 5, 2), median_ms(theirs, 5, 2)
    peaks = [_peak(call) for call in (ours, theirs)]
    off = abs(values["ours"] - values["theirs"]) / abs(values["theirs"])
    return {
        "what": f"{name} {len(queries)} × {len(labels)} × {queries.shape[1]}",
        "ms": ms,
        "torch_ms": theirs_ms,
        "ratio": theirs_ms / ms,
        "gib": peaks[0],
        "torch_gib": peaks[1],
        "difference": off,
        "note": f"{peaks[0]:.2f} GiB, torch {peaks[1]:.2f}; values differ by {off:.1e}",
    }


def _peak(call: Callable[[], Any]) -> float:
    """Return the GiB that a call holds at most beyond what was held before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def rescore() -> Iterator[Row]:
    """Yield `rescore` of 64 × 500 candidates beside torch's gather, einsum, softmax and sort."""
    kernels, labels, queries = KERNELS["triton"](), rows(1_000_000, 384, 0), rows(64, 384, 1)
    prepared = kernels.prepare(labels, "none")
    ids = torch.randint(0, len(labels), (64, 500), device="cuda", generator=torch.Generator("cuda").manual_seed(2))

    def naive() -> Any:
        scores = torch.einsum("bd,bkd->bk", queries, labels[ids])
        return torch.softmax(scores / T, 1), torch.sort(scores, dim=1, descending=True)

    ours, theirs = median_ms(lambda: kernels.rescore(queries, prepared, ids, T)), median_ms(naive)
    yield {"what": "64 × 500 of 1,000,000 × 384", "ms": ours, "torch_ms": theirs, "ratio": theirs / ours}


def softmax(rates: dict[str, float]) -> Iterator[Row]:
    """Yield two-pass `softmax` beside torch.softmax on 64M floats; it reads them twice and writes them once."""
    kernels = KERNELS["triton"]()
    for shape in ((1, 1 << 26), (512, 131_072), (65_536, 1024)):
        scores = 10 * torch.randn(shape, device="cuda")
        ours, theirs = median_ms(partial(kernels.softmax, scores)), median_ms(partial(torch.softmax, scores, -1))
        share = 3 * 4 * math.prod(shape) / ours / 1e6 / rates["bandwidth_gbs"]
        row = {"what": f"{shape[0]} × {shape[1]}", "ms": ours, "torch_ms": theirs, "ratio": theirs / ours}
        yield row | {"share_of_bandwidth": share, "note": f"{100 * share:.0f}% of the bandwidth"}
