"""Sums over each row's scores that can be differentiated, on the GPU: no (B, L) matrix in either direction.

With `products="bfloat16"` the three matrix products take bfloat16 operands; sums and exponentials are float32, sums over tiles
float64.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dexml.errors import InputError
from dexml.kernels.checks import check_pairs
from dexml.kernels.triton_pairs import TiledPairs, pair_scores, spread
from dexml.kernels.triton_rows import (
    EXPONENTIAL,
    HINGE,
    SIGMOID,
    SLOPE,
    STABLE,
    log_partition,
    products_with,
    room,
    slabs,
    weigh,
)
from dexml.kernels.triton_tiles import LOG2E, check_size
from dexml.types import Positives

Products = Literal["float32", "bfloat16"]
KEEP_BYTES = 8 << 30  # of weights that the forward pass keeps for the backward one; what is beyond is computed again
BOUNDED = 50.0  # |s|·log₂e up to which 2^{s − bound} is a normal number everywhere, and no maximum need be found first
PASSES = 60  # of the threshold solver, at most; a handful is the rule
TOLERANCE = 1e-6  # of α·t, where the float32 sums no longer tell two thresholds apart


class Partition(torch.autograd.Function):
    """log Σ e^{s} (B) and the scores s of the positive pairs (nnz), in float32."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, labels: Tensor, pairs: TiledPairs, temperature: float, exclude: bool, products: Products
    ) -> tuple[Tensor, Tensor]:
        """Return the sums and the scores of the pairs."""
        left, right = _operand(queries, products), _operand(labels, products)
        bounds = _bounds(left, right, LOG2E / temperature)
        ctx.kept = {}
        if bool(bounds.max() > BOUNDED):
            log_z = log_partition(left, right, pairs, temperature, exclude)
            ctx.shifts = torch.where(log_z == -math.inf, 0.0, log_z * LOG2E)
        else:
            room_left = KEEP_BYTES if any(ctx.needs_input_grad) else 0
            total = torch.zeros(len(left), dtype=torch.float64, device=left.device)
            for span in slabs(len(right), len(left), left.element_size()):
                weights = None
                size = (span[1] - span[0]) * len(left) * left.element_size()
                if size <= room_left:
                    room_left -= size
                    weights = ctx.kept[span] = room(left, span)
                total += weigh(left, right, pairs, span, EXPONENTIAL, LOG2E / temperature, bounds, exclude, weights)[0]
            log_z, ctx.shifts = (bounds.double() + total.log2()) / LOG2E, bounds.double()
        ctx.save_for_backward(left, right, log_z)
        ctx.rest = pairs, temperature, exclude, queries.dtype, labels.dtype
        return log_z.float(), pair_scores(left, right, pairs) / temperature

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_log_z: Tensor, of_pairs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries and labels."""
        left, right, log_z = ctx.saved_tensors
        pairs, temperature, exclude, query_type, label_type = ctx.rest
        factors = torch.exp2(ctx.shifts - log_z * LOG2E) * of_log_z / temperature
        factors = torch.where(log_z == -math.inf, 0.0, factors)
        kept, ctx.kept = ctx.kept, {}  # freed slab by slab; a second pass over a kept graph weighs anew
        weighing = (EXPONENTIAL, LOG2E / temperature, ctx.shifts.float(), exclude)
        of_queries, of_labels = _gradients(left, right, pairs, weighing, factors, of_pairs / temperature, kept)
        return of_queries.to(query_type), of_labels.to(label_type), None, None, None, None


class Threshold(torch.autograd.Function):
    """t (B) with Σ_j σ(α(s_ij + t_i)) = k and the scores s of the positive pairs (nnz), in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        labels: Tensor,
        pairs: TiledPairs,
        temperature: float,
        k: int,
        alpha: float,
        products: Products,
    ) -> tuple[Tensor, Tensor]:
        """Return the sums and the scores of the pairs."""
        left, right = _operand(queries, products), _operand(labels, products)
        t, slopes = _solve(left, right, pairs, temperature, k, alpha)
        ctx.save_for_backward(left, right, t, slopes)
        ctx.rest = pairs, temperature, alpha, queries.dtype, labels.dtype
        return t.float(), pair_scores(left, right, pairs) / temperature

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_t: Tensor, of_pairs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries and labels."""
        left, right, t, slopes = ctx.saved_tensors
        pairs, temperature, alpha, query_type, label_type = ctx.rest
        # ∂t/∂s_j = −v_j / Σv with v = σ(1 − σ); a saturated row moves no threshold.
        factors = torch.where(slopes > torch.finfo(torch.float32).tiny, -of_t / (slopes * temperature), 0.0)
        weighing = (SLOPE, alpha / temperature, (alpha * t).float(), False)
        of_queries, of_labels = _gradients(left, right, pairs, weighing, factors, of_pairs / temperature, {})
        return of_queries.to(query_type), of_labels.to(label_type), None, None, None, None, None


class SoftplusSum(torch.autograd.Function):
    """Σ_j log(1 + e^{s_ij}) (B) and the scores s of the positive pairs (nnz), in float32."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, labels: Tensor, pairs: TiledPairs, temperature: float, products: Products
    ) -> tuple[Tensor, Tensor]:
        """Return the sums and the scores of the pairs."""
        left, right = _operand(queries, products), _operand(labels, products)
        nothing = torch.zeros(len(left), dtype=torch.float32, device=left.device)
        total = weigh(left, right, pairs, (0, len(right)), SIGMOID, 1 / temperature, nothing)[0]
        ctx.save_for_backward(left, right, nothing)
        ctx.rest = pairs, temperature, queries.dtype, labels.dtype
        return total.float(), pair_scores(left, right, pairs) / temperature

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sums: Tensor, of_pairs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries and labels."""
        left, right, nothing = ctx.saved_tensors
        pairs, temperature, query_type, label_type = ctx.rest
        weighing = (SIGMOID, 1 / temperature, nothing, False)
        of_queries, of_labels = _gradients(left, right, pairs, weighing, of_sums / temperature, of_pairs / temperature, {})
        return of_queries.to(query_type), of_labels.to(label_type), None, None, None


class SquaredHinge(torch.autograd.Function):
    """Σ_{j ∉ P_i} max(0, 1 + s_ij − boundary)² (B) and the scores s of the positive pairs (nnz), in float32."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, labels: Tensor, pairs: TiledPairs, temperature: float, boundary: float, products: Products
    ) -> tuple[Tensor, Tensor]:
        """Return the sums and the scores of the pairs."""
        left, right = _operand(queries, products), _operand(labels, products)
        shifts = torch.full((len(left),), 1 - boundary, dtype=torch.float32, device=left.device)
        total = weigh(left, right, pairs, (0, len(right)), HINGE, 1 / temperature, shifts, exclude=True)[0]
        ctx.save_for_backward(left, right, shifts)
        ctx.rest = pairs, temperature, queries.dtype, labels.dtype
        return total.float(), pair_scores(left, right, pairs) / temperature

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sums: Tensor, of_pairs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries and labels."""
        left, right, shifts = ctx.saved_tensors
        pairs, temperature, query_type, label_type = ctx.rest
        weighing, factors = (HINGE, 1 / temperature, shifts, True), 2 * of_sums / temperature
        of_queries, of_labels = _gradients(left, right, pairs, weighing, factors, of_pairs / temperature, {})
        return of_queries.to(query_type), of_labels.to(label_type), None, None, None, None


class StableSum(torch.autograd.Function):
    """Σ_{n∉P_i} S(s_in) (B), S as `weigh_kernel` has it, and the scores s of the positive pairs (nnz), in float32."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, labels: Tensor, pairs: TiledPairs, temperature: float, products: Products
    ) -> tuple[Tensor, Tensor]:
        """Return the sums and the scores of the pairs."""
        left, right = _operand(queries, products), _operand(labels, products)
        nothing = torch.zeros(len(left), dtype=torch.float32, device=left.device)
        total = weigh(left, right, pairs, (0, len(right)), STABLE, 1 / temperature, nothing, exclude=True)[0]
        ctx.save_for_backward(left, right, nothing)
        ctx.rest = pairs, temperature, queries.dtype, labels.dtype
        return total.float(), pair_scores(left, right, pairs) / temperature

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sums: Tensor, of_pairs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries and labels."""
        left, right, nothing = ctx.saved_tensors
        pairs, temperature, query_type, label_type = ctx.rest
        weighing = (STABLE, 1 / temperature, nothing, True)
        of_queries, of_labels = _gradients(left, right, pairs, weighing, of_sums / temperature, of_pairs / temperature, {})
        return of_queries.to(query_type), of_labels.to(label_type), None, None, None


def _gradients(
    queries: Tensor,
    labels: Tensor,
    pairs: TiledPairs,
    weighing: tuple[int, float, Tensor, bool],
    factors: Tensor,
    pulls: Tensor,
    kept: dict[tuple[int, int], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the float32 gradients by operands (B, D) and (L, D), given that by the scores: factor_i · weight_ij, and pulls.

    `weighing` is kind, scale, shifts and exclude of `weigh`; weights of slabs that were `kept` are not computed again.
    """
    of_queries = torch.zeros(queries.shape, dtype=torch.float32, device=queries.device)
    of_labels = torch.empty(labels.shape, dtype=torch.float32, device=queries.device)
    by_row = factors.float()[:, None]
    weighted = (queries * by_row).to(queries.dtype)
    kind, scale, shifts, exclude = weighing
    buffer: Tensor | None = None
    for span in slabs(len(labels), len(queries), queries.element_size()):
        weights = kept.pop(span, None)
        if weights is None:
            buffer = room(queries, span) if buffer is None else buffer[:, : span[1] - span[0]]
            weights = buffer
            weigh(queries, labels, pairs, span, kind, scale, shifts, exclude, weights)
        products_with(weights, weighted, labels, span, of_queries, of_labels)
    of_queries *= by_row
    rows, columns = pairs.rows.long(), pairs.columns.long()
    tiled = pulls.float().index_select(0, pairs.order)
    spread(labels, columns, tiled, rows, of_queries)
    spread(queries, rows, tiled, columns, of_labels)
    return of_queries, of_labels


def _bounds(queries: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Return a number above |s·scale| for every score of each row, float32 (B), by Cauchy and Schwarz."""
    longest = torch.linalg.vector_norm(labels, dim=1, dtype=torch.float32).max()
    bounds: Tensor = torch.linalg.vector_norm(queries, dim=1, dtype=torch.float32) * longest * (scale * 1.001)
    return bounds


def _solve(
    queries: Tensor, labels: Tensor, pairs: TiledPairs, temperature: float, k: int, alpha: float
) -> tuple[Tensor, Tensor]:
    """Return t (B) and Σ_j σ(1 − σ) at t (B), float64; t = +∞ where k ≥ L.

    Newton steps on log Σσ inside a bracket, from below: σ(x) < e^x gives t ≥ (log k − log Σ e^{αs})/α.
    """
    batch, length = len(queries), len(labels)
    if k >= length:
        everything = torch.full((batch,), math.inf, dtype=torch.float64, device=queries.device)
        return everything, torch.zeros_like(everything)

    def sums(t: Tensor) -> tuple[Tensor, Tensor]:
        return weigh(queries, labels, pairs, (0, length), SLOPE, alpha / temperature, (alpha * t).float())

    shift = math.log(length / k - 1) / alpha
    limit = _bounds(queries, labels, 1 / temperature).double()
    low = (math.log(k) - log_partition(queries, labels, pairs, temperature / alpha, exclude=False)) / alpha
    low, high = torch.maximum(low, -limit - shift), limit - shift
    t = torch.minimum(low, high)
    for _ in range(PASSES):
        total, slope = sums(t)
        low, high = torch.where(total <= k, t, low), torch.where(total >= k, t, high)
        following = t - torch.log(total / k) * total / (alpha * slope)
        inside = (following >= low) & (following <= high)
        following = torch.where(inside, following, (low + high) / 2)
        moved = (following - t).abs()
        t = following
        if bool((moved <= TOLERANCE * (t.abs() + 1 / alpha)).all()):
            break
    return t, sums(t)[1]


def rows_and_pairs(
    function: Any, queries: Tensor, labels: Tensor, positives: Positives, *options: Any
) -> tuple[Tensor, Tensor]:
    """Return a sum of each row (B) and the scores of the positive pairs (nnz) by one of the functions above."""
    check_pairs(queries, labels, positives)
    check_size(labels)
    if len(queries) == 0:
        return queries.sum(1).float() + labels.sum() * 0, queries.sum(1).float()
    found: tuple[Tensor, Tensor] = function.apply(queries, labels, TiledPairs.of(positives, queries.device), *options)
    return found


def _operand(tensor: Tensor, products: Products) -> Tensor:
    if tensor.dtype == torch.float64:
        raise InputError("the triton kernels compute in float32, not in float64; ask for the reference backend")
    return tensor.detach().to(torch.bfloat16 if products == "bfloat16" else torch.float32).contiguous()


__all__ = ["Partition", "Products", "SoftplusSum", "SquaredHinge", "StableSum", "Threshold", "rows_and_pairs"]
