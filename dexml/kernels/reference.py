"""The definition of correct: every operation in plain torch, in float64 when the inputs are float64, on any device."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dexml.kernels.base import Kernels, Prepared
from dexml.kernels.checks import (
    check_ids,
    check_k,
    check_labels,
    check_pairs,
    check_products,
    check_queries,
    check_temperature,
)
from dexml.types import Positives, Problem, TopK


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return `tensor` itself when float32 or float64, else as float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def positive_pairs(positives: Positives, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return the row numbers and label numbers of all positives, int64 (nnz) each, sorted by row then label."""
    rows = np.repeat(np.arange(len(positives), dtype=np.int64), np.diff(positives.indptr))
    return torch.from_numpy(rows).to(device), torch.from_numpy(positives.indices).to(device)


def threshold(scores: Tensor, k: float, alpha: float, passes: int = 100) -> Tensor:
    """Return t (B) with Σ_j σ(α(s_ij + t_i)) = k for `scores` (B, L), without a gradient; +∞ where k ≥ L.

    Newton steps on log Σσ, which is nearly linear in t while the sigmoids are in their exponential tail, inside a bracket
    that halves whenever a step would leave it.
    """
    batch, labels = scores.shape
    if k >= labels or batch == 0:
        return scores.new_full((batch,), math.inf)
    # σ = k/L for every label at −s − shift: all labels below it at one end of the bracket, above it at the other.
    shift = math.log(labels / k - 1) / alpha
    low, high = -scores.amax(1) - shift, -scores.amin(1) - shift
    t = low.clone()
    tolerance = 4 * torch.finfo(scores.dtype).eps
    for _ in range(passes):
        sigmoid = torch.sigmoid(alpha * (scores + t[:, None]))
        total = sigmoid.sum(1)
        slope = alpha * sigmoid.mul_(1 - sigmoid).sum(1)
        low, high = torch.where(total <= k, t, low), torch.where(total >= k, t, high)
        step = torch.log(total / k) * total / slope
        middle = (low + high) / 2
        following = t - step
        following = torch.where((following >= low) & (following <= high), following, middle)
        scale = following.abs() + 1 / alpha
        done = ((following - t).abs() <= tolerance * scale) | (high - low <= tolerance * scale)
        t = following
        if bool(done.all()):
            break
    return t


def log_stable(scores: Tensor) -> Tensor:
    """Return log S, S(x) = 1 + x or 1/(1 − x) for x < 0: sign(x) log(1 + |x|), in each element; NaN of what is not finite."""
    above, below = torch.where(scores >= 0, scores, 0), torch.where(scores < 0, -scores, 0)
    return torch.log1p(above) - torch.log1p(below) + 0 * scores  # at 0 the slope is 1, which that of sign and |x| is not


class ReferenceKernels(Kernels):
    """Plain torch with the whole (B, L) score matrix in memory; slow, and what every other backend is held to."""

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """Return None: plain torch serves everything."""
        return None

    def prepare(self, labels: Tensor, copy: str = "auto") -> Prepared:
        """Return the labels (L, D) contiguous, float64 kept; this backend needs no scanning copy and makes none."""
        check_labels(labels, copy)
        return Prepared(at_least_float32(labels.detach()).contiguous(), "none")

    def scan(self, queries: Tensor, prepared: Prepared, k: int, temperature: float) -> TopK:
        """Return the exact top-k (B, k) of `queries @ labels.T` and log_z (B) = logsumexp(scores/τ) over all labels."""
        check_queries(queries, prepared.labels.shape[1], temperature)
        check_k(k)
        labels = prepared.labels
        # In float64 whatever the inputs are: this is what "exact order" means to every other backend.
        scores = queries.detach().double() @ labels.double().T  # (B, L)
        # A stable sort keeps the lowest label number first among equals.
        ordered, ids = torch.sort(scores, dim=1, descending=True, stable=True)
        missing = max(0, k - len(labels))
        ids = torch.nn.functional.pad(ids[:, :k], (0, missing), value=-1)
        ordered = torch.nn.functional.pad(ordered[:, :k], (0, missing), value=-math.inf).to(labels.dtype)
        return TopK(ids, ordered, torch.logsumexp(scores / temperature, 1).to(labels.dtype))

    def rescore(self, queries: Tensor, prepared: Prepared, ids: Tensor, temperature: float) -> TopK:
        """Return `ids` (B, K) sorted by (queries[:, None] * labels[ids]).sum(-1), and log_z (B) over the candidates."""
        check_queries(queries, prepared.labels.shape[1], temperature)
        check_ids(ids, len(queries), len(prepared))
        labels = prepared.labels
        scores = (queries.detach().double()[:, None] * labels[ids.clamp(min=0)].double()).sum(-1)  # (B, K)
        scores = scores.masked_fill(ids < 0, -math.inf)
        ids, order = torch.sort(ids, dim=1, stable=True)
        scores, places = torch.sort(scores.gather(1, order), dim=1, descending=True, stable=True)
        log_z = torch.logsumexp(scores / temperature, 1)
        return TopK(ids.gather(1, places), scores.to(labels.dtype), log_z.to(labels.dtype))

    def softmax(self, scores: Tensor, temperature: float = 1.0) -> Tensor:
        """Return torch.softmax(scores/τ, -1), and zeros for a row that is −∞ throughout."""
        check_temperature(temperature)
        exact = at_least_float32(scores).double() / temperature
        result = torch.softmax(exact, -1)
        result = torch.where((exact == -math.inf).all(-1, keepdim=True), 0.0, result)
        return result if scores.dtype == torch.float64 else result.float()

    def negative_lse(self, queries: Tensor, labels: Tensor, positives: Positives, temperature: float) -> Tensor:
        """Return torch.logsumexp((queries @ labels.T / τ).masked_fill(positive, −∞), 1), (B); −∞ without negatives."""
        check_products(queries, labels, temperature)
        check_pairs(queries, labels, positives)
        scores = at_least_float32(queries) @ at_least_float32(labels).T / temperature  # (B, L)
        rows, columns = positive_pairs(positives, scores.device)
        mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        mask[rows, columns] = True
        empty = mask.all(1)
        # logsumexp has no gradient where every term is −∞: give such rows a stand-in and put −∞ in afterwards.
        masked = scores.masked_fill(mask & ~empty[:, None], -math.inf)
        return torch.logsumexp(masked, 1).masked_fill(empty, -math.inf)

    def topk_threshold(self, queries: Tensor, labels: Tensor, k: int, alpha: float, temperature: float) -> Tensor:
        """Return t (B) with torch.sigmoid(α·(queries @ labels.T / τ + t[:, None])).sum(1) == k; +∞ where k ≥ L."""
        check_k(k)
        check_products(queries, labels, temperature)
        scores = at_least_float32(queries) @ at_least_float32(labels).T / temperature  # (B, L)
        if k >= len(labels):
            return scores.sum(1) * 0 + math.inf  # constant, and differentiable all the same
        t = threshold(scores.detach(), k, alpha)
        # One Newton step that autograd can see carries the implicit gradient ∂t/∂s_j = −v_j / Σv, v = ασ(1−σ).
        sigmoid = torch.sigmoid(alpha * (scores + t[:, None]))
        plain = sigmoid.detach()
        slope = alpha * (plain * (1 - plain)).sum(1)
        solid = slope > torch.finfo(slope.dtype).tiny  # a saturated row moves no threshold
        residual = torch.where(solid, sigmoid.sum(1) - k, 0.0)
        return t - residual / torch.where(solid, slope, 1.0)
