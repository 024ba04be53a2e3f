"""Differentiable row sums on the GPU and the losses made of them: no (B, L) matrix in either direction.

Each function takes float queries (B, D) and labels (L, D) on one device and `Positives`. With `products="bfloat16"` the three
matrix products take bfloat16 operands; sums and exponentials are float32, sums over tiles float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from dexml.errors import InputError
from dexml.kernels.checks import check_k, check_pairs
from dexml.kernels.reference import log_stable
from dexml.kernels.triton_pairs import TiledPairs, pair_scores, spread
from dexml.kernels.triton_rows import (
    EXPONENTIAL,
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
Tell = Callable[[Tensor], None]
"""Is told how far each positive (nnz) is below what it stands against, as `dexml.losses.base.ScoreLoss.tell` wants it."""
KEEP_BYTES = 8 << 30  # of weights that the forward pass keeps for the backward one; what is beyond is computed again
BOUNDED = 50.0  # |s|·log₂e up to which 2^{s − bound} is a normal number everywhere, and no maximum need be found first
PASSES = 60  # of the threshold solver, at most; a handful is the rule
TOLERANCE = 1e-6  # of α·t, where the float32 sums no longer tell two thresholds apart


class _Partition(torch.autograd.Function):
    """log Σ e^{s} (B) and the scores s of the positive pairs (nnz), in float32."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, labels: Tensor, pairs: TiledPairs, temperature: float, exclude: bool, products: Products
    ) -> tuple[Tensor, Tensor]:
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
        left, right, log_z = ctx.saved_tensors
        pairs, temperature, exclude, query_type, label_type = ctx.rest
        factors = torch.exp2(ctx.shifts - log_z * LOG2E) * of_log_z / temperature
        factors = torch.where(log_z == -math.inf, 0.0, factors)
        kept, ctx.kept = ctx.kept, {}  # freed slab by slab; a second pass over a kept graph weighs anew
        weighing = (EXPONENTIAL, LOG2E / temperature, ctx.shifts.float(), exclude)
        of_queries, of_labels = _gradients(left, right, pairs, weighing, factors, of_pairs / temperature, kept)
        return of_queries.to(query_type), of_labels.to(label_type), None, None, None, None


class _Threshold(torch.autograd.Function):
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
        left, right = _operand(queries, products), _operand(labels, products)
        t, slopes = _solve(left, right, pairs, temperature, k, alpha)
        ctx.save_for_backward(left, right, t, slopes)
        ctx.rest = pairs, temperature, alpha, queries.dtype, labels.dtype
        return t.float(), pair_scores(left, right, pairs) / temperature

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_t: Tensor, of_pairs: Tensor) -> tuple[Tensor | None, ...]:
        left, right, t, slopes = ctx.saved_tensors
        pairs, temperature, alpha, query_type, label_type = ctx.rest
        # ∂t/∂s_j = −v_j / Σv with v = σ(1 − σ); a saturated row moves no threshold.
        factors = torch.where(slopes > torch.finfo(torch.float32).tiny, -of_t / (slopes * temperature), 0.0)
        weighing = (SLOPE, alpha / temperature, (alpha * t).float(), False)
        of_queries, of_labels = _gradients(left, right, pairs, weighing, factors, of_pairs / temperature, {})
        return of_queries.to(query_type), of_labels.to(label_type), None, None, None, None, None


class _SoftplusSum(torch.autograd.Function):
    """Σ_j log(1 + e^{s_ij}) (B) and the scores s of the positive pairs (nnz), in float32."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, labels: Tensor, pairs: TiledPairs, temperature: float, products: Products
    ) -> tuple[Tensor, Tensor]:
        left, right = _operand(queries, products), _operand(labels, products)
        nothing = torch.zeros(len(left), dtype=torch.float32, device=left.device)
        total = weigh(left, right, pairs, (0, len(right)), SIGMOID, 1 / temperature, nothing)[0]
        ctx.save_for_backward(left, right, nothing)
        ctx.rest = pairs, temperature, queries.dtype, labels.dtype
        return total.float(), pair_scores(left, right, pairs) / temperature

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sums: Tensor, of_pairs: Tensor) -> tuple[Tensor | None, ...]:
        left, right, nothing = ctx.saved_tensors
        pairs, temperature, query_type, label_type = ctx.rest
        weighing = (SIGMOID, 1 / temperature, nothing, False)
        of_queries, of_labels = _gradients(left, right, pairs, weighing, of_sums / temperature, of_pairs / temperature, {})
        return of_queries.to(query_type), of_labels.to(label_type), None, None, None


class _StableSum(torch.autograd.Function):
    """Σ_{n∉P_i} S(s_in) (B), S as `weigh_kernel` has it, and the scores s of the positive pairs (nnz), in float32."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, labels: Tensor, pairs: TiledPairs, temperature: float, products: Products
    ) -> tuple[Tensor, Tensor]:
        left, right = _operand(queries, products), _operand(labels, products)
        nothing = torch.zeros(len(left), dtype=torch.float32, device=left.device)
        total = weigh(left, right, pairs, (0, len(right)), STABLE, 1 / temperature, nothing, exclude=True)[0]
        ctx.save_for_backward(left, right, nothing)
        ctx.rest = pairs, temperature, queries.dtype, labels.dtype
        return total.float(), pair_scores(left, right, pairs) / temperature

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sums: Tensor, of_pairs: Tensor) -> tuple[Tensor | None, ...]:
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


def negative_lse(
    queries: Tensor, labels: Tensor, positives: Positives, temperature: float, products: Products = "float32"
) -> Tensor:
    """Return torch.logsumexp((queries @ labels.T / τ).masked_fill(positive, −∞), 1), float32 (B); −∞ without negatives."""
    return log_sum_and_pairs(queries, labels, positives, temperature, exclude=True, products=products)[0]


def log_sum_and_pairs(
    queries: Tensor, labels: Tensor, positives: Positives, temperature: float, exclude: bool, products: Products
) -> tuple[Tensor, Tensor]:
    """Return log Σ_j e^{s_ij} (B), with `exclude` over j ∉ P_i alone, and s_ip of the positive pairs (nnz), s = ⟨x, y⟩/τ.

    Differentiable in queries and labels; float32. Equals, with s = queries @ labels.T / τ,
    torch.logsumexp(s.masked_fill(positive, −∞) if exclude else s, 1) and s[rows, columns].
    """
    return _rows_and_pairs(_Partition, queries, labels, positives, temperature, exclude, products)


def threshold_and_pairs(
    queries: Tensor, labels: Tensor, positives: Positives, k: int, alpha: float, temperature: float, products: Products
) -> tuple[Tensor, Tensor]:
    """Return t (B) with Σ_j σ(α(s_ij + t_i)) = k and s_ip of the positive pairs (nnz), s = ⟨x, y⟩/τ; t = +∞ where k ≥ L.

    Differentiable in queries and labels; float32. Equals torch.sigmoid(α·(s + t[:, None])).sum(1) == k and s[rows, columns].
    """
    check_k(k)
    return _rows_and_pairs(_Threshold, queries, labels, positives, temperature, k, alpha, products)


def _rows_and_pairs(
    function: Any, queries: Tensor, labels: Tensor, positives: Positives, *options: Any
) -> tuple[Tensor, Tensor]:
    """Return a sum of each row (B) and the scores of the positive pairs (nnz) by one of the functions above."""
    check_pairs(queries, labels, positives)
    check_size(labels)
    if len(queries) == 0:
        return queries.sum(1).float() + labels.sum() * 0, queries.sum(1).float()
    found: tuple[Tensor, Tensor] = function.apply(queries, labels, TiledPairs.of(positives, queries.device), *options)
    return found


def decoupled_softmax(
    queries: Tensor,
    labels: Tensor,
    positives: Positives,
    temperature: float,
    shares: Tensor | None = None,
    products: Products = "bfloat16",
    tell: Tell | None = None,
) -> Tensor:
    """Return −(1/B) Σ_i Σ_{p∈P_i} share_ip [s_ip − log(e^{s_ip} + Σ_{n∉P_i} e^{s_in})], s = ⟨x, y⟩/τ, a float32 scalar.

    `shares` (nnz) is 1/|P_i| where not given; all positives leave the sum over negatives, whatever their share.
    """
    log_z, of_pairs = log_sum_and_pairs(queries, labels, positives, temperature, exclude=True, products=products)
    rows, equal = _rows_and_shares(positives, of_pairs)
    gaps = log_z.index_select(0, rows) - of_pairs
    _told(tell, gaps)
    return ((equal if shares is None else shares) * softplus(gaps)).sum() / max(1, len(queries))


def softmax_loss(
    queries: Tensor,
    labels: Tensor,
    positives: Positives,
    temperature: float,
    products: Products = "bfloat16",
    tell: Tell | None = None,
) -> Tensor:
    """Return −(1/B) Σ_i Σ_{p∈P_i} [s_ip − log Σ_j e^{s_ij}], s = ⟨x, y⟩/τ, a float32 scalar."""
    log_z, of_pairs = log_sum_and_pairs(queries, labels, positives, temperature, exclude=False, products=products)
    rows, _ = _rows_and_shares(positives, of_pairs)
    losses = log_z.index_select(0, rows) - of_pairs  # −log p
    _told(tell, torch.expm1(losses).clamp(min=torch.finfo(losses.dtype).tiny).log())
    return losses.sum() / max(1, len(queries))


def soft_topk(
    queries: Tensor,
    labels: Tensor,
    positives: Positives,
    temperature: float,
    k: int = 5,
    alpha: float = 2.0,
    products: Products = "bfloat16",
    tell: Tell | None = None,
) -> Tensor:
    """Return −(1/B) Σ_i (1/|P_i|) Σ_{p∈P_i} log σ(α(s_ip + t_i)), Σ_j σ(α(s_ij + t_i)) = k, a float32 scalar; 0 for k ≥ L."""
    t, of_pairs = threshold_and_pairs(queries, labels, positives, k, alpha, temperature, products)
    rows, shares = _rows_and_shares(positives, of_pairs)
    gaps = -alpha * (of_pairs + t.index_select(0, rows))
    _told(tell, gaps)
    return (shares * softplus(gaps)).sum() / max(1, len(queries))


def binary_cross_entropy(
    queries: Tensor,
    labels: Tensor,
    positives: Positives,
    temperature: float,
    products: Products = "bfloat16",
    tell: Tell | None = None,
) -> Tensor:
    """Return (1/(B·L)) [Σ_ij log(1 + e^{s_ij}) − Σ_{positive pairs} s_ip] over the rows with a positive, a float32 scalar."""
    sums, of_pairs = _rows_and_pairs(_SoftplusSum, queries, labels, positives, temperature, products)
    _told(tell, -of_pairs)
    labelled = torch.from_numpy(positives.indptr).diff().to(sums.device) > 0
    return ((sums * labelled).sum() - of_pairs.sum()) / max(1, len(queries) * len(labels))


def stablemax(
    queries: Tensor,
    labels: Tensor,
    positives: Positives,
    temperature: float,
    shares: Tensor,
    products: Products = "bfloat16",
    tell: Tell | None = None,
) -> Tensor:
    """Return −(1/B) Σ_i Σ_{p∈P_i} share_ip log [S(s_ip) / (S(s_ip) + Σ_{n∉P_i} S(s_in))], s = ⟨x, y⟩/τ, a float32 scalar."""
    sums, of_pairs = _rows_and_pairs(_StableSum, queries, labels, positives, temperature, products)
    rows, _ = _rows_and_shares(positives, of_pairs)
    nothing = sums == 0  # beside its positives
    gaps = sums.masked_fill(nothing, 1).log().masked_fill(nothing, -math.inf).index_select(0, rows) - log_stable(of_pairs)
    _told(tell, gaps)
    return (shares * softplus(gaps)).sum() / max(1, len(queries))


def _told(tell: Tell | None, gaps: Tensor) -> None:
    if tell is not None:
        tell(gaps.detach())


def _rows_and_shares(positives: Positives, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pair's row, int64 (nnz), and 1/|P_i| of that row (nnz)."""
    counts = torch.from_numpy(positives.indptr).diff().to(like.device)
    rows = torch.repeat_interleave(torch.arange(len(counts), device=like.device), counts)
    return rows, 1 / counts[rows].to(like.dtype)


def _operand(tensor: Tensor, products: Products) -> Tensor:
    if tensor.dtype == torch.float64:
        raise InputError("the triton kernels compute in float32, not in float64; ask for the reference backend")
    return tensor.detach().to(torch.bfloat16 if products == "bfloat16" else torch.float32).contiguous()
