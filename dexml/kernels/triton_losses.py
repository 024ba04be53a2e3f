"""The losses on the GPU, made of differentiable row sums (triton_sums.py).

Each function takes float queries (B, D) and labels (L, D) on one device and `Positives`. With `products="bfloat16"` the three
matrix products take bfloat16 operands; sums and exponentials are float32, sums over tiles float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dexml.kernels.checks import check_k
from dexml.kernels.reference import log_stable
from dexml.kernels.triton_sums import Partition, Products, SoftplusSum, SquaredHinge, StableSum, Threshold, rows_and_pairs
from dexml.types import Positives

Tell = Callable[[Tensor], None]
"""Is told how far each positive (nnz) is below what it stands against, as `dexml.losses.base.ScoreLoss.tell` wants it."""


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
    return rows_and_pairs(Partition, queries, labels, positives, temperature, exclude, products)


def threshold_and_pairs(
    queries: Tensor, labels: Tensor, positives: Positives, k: int, alpha: float, temperature: float, products: Products
) -> tuple[Tensor, Tensor]:
    """Return t (B) with Σ_j σ(α(s_ij + t_i)) = k and s_ip of the positive pairs (nnz), s = ⟨x, y⟩/τ; t = +∞ where k ≥ L.

    Differentiable in queries and labels; float32. Equals torch.sigmoid(α·(s + t[:, None])).sum(1) == k and s[rows, columns].
    """
    check_k(k)
    return rows_and_pairs(Threshold, queries, labels, positives, temperature, k, alpha, products)


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
    sums, of_pairs = rows_and_pairs(SoftplusSum, queries, labels, positives, temperature, products)
    _told(tell, -of_pairs)
    labelled = torch.from_numpy(positives.indptr).diff().to(sums.device) > 0
    return ((sums * labelled).sum() - of_pairs.sum()) / max(1, len(queries) * len(labels))


def squared_hinge(
    queries: Tensor,
    labels: Tensor,
    positives: Positives,
    temperature: float,
    boundary: float = 0.0,
    weight: float = 1.0,
    products: Products = "bfloat16",
) -> Tensor:
    """Return (1/(B·L)) Σ [Σ_{n∉P} max(0, 1 + o_n)² + weight·Σ_{p∈P} max(0, 1 − o_p)²] over the rows with a positive.

    o = ⟨x, y⟩/τ − boundary; a float32 scalar.
    """
    sums, of_pairs = rows_and_pairs(SquaredHinge, queries, labels, positives, temperature, boundary, products)
    labelled = torch.from_numpy(positives.indptr).diff().to(sums.device) > 0
    gaps = 1 + boundary - of_pairs
    own = (torch.where(gaps <= 0, 0.0, gaps) ** 2).sum()
    return ((sums * labelled).sum() + weight * own) / max(1, len(queries) * len(labels))


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
    sums, of_pairs = rows_and_pairs(StableSum, queries, labels, positives, temperature, products)
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
