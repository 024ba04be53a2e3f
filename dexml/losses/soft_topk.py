"""Soft top-k: put every positive above the threshold that lets k labels through (DEXML, ICLR 2024; METHODS §1)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.functional import softplus

from dexml.kernels import numba_losses
from dexml.kernels.numba_losses import Slab
from dexml.kernels.reference import threshold
from dexml.losses.base import Backend, Pairs, Products, ScoreLoss, Shares
from dexml.types import Positives


class SoftTopK(ScoreLoss):
    """−(1/B) Σ_i (1/|P_i|) Σ_{p∈P_i} log σ(α(s_ip + t_i)), with t_i such that Σ_j σ(α(s_ij + t_i)) = k.

    With k ≥ L every label is let through, t is infinite, and the loss is 0.
    """

    def __init__(
        self,
        *,
        temperature: Annotated[float, Gt(0)] = 0.05,
        products: Products = "auto",
        backend: Backend = "auto",
        k: Annotated[int, Ge(1)] = 5,
        alpha: Annotated[float, Gt(0)] = 2.0,
    ) -> None:
        super().__init__(temperature=temperature, products=products, backend=backend)
        self.k = k
        self.alpha = alpha

    def value_and_gradient(self, scores: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient, through the threshold by the implicit function theorem.

        With v_j = ασ_j(1−σ_j) and u the gradient at fixed t, ∂/∂s_j = u_j − v_j (Σu)/(Σv); a row whose sigmoids are all
        saturated (Σv = 0) keeps u.
        """
        if self.k >= scores.shape[1] or len(scores) == 0:
            return scores.sum() * 0, torch.zeros_like(scores)
        batch = len(scores)
        t = threshold(scores, self.k, self.alpha)
        shifted = scores.add_(t[:, None]).mul_(self.alpha)
        of_pairs = shifted[pairs.rows, pairs.columns]
        self.tell(-of_pairs)
        value = (pairs.shares * softplus(-of_pairs)).sum() / batch
        pulls = -pairs.shares * self.alpha * torch.sigmoid(-of_pairs) / batch  # u at the positives, 0 elsewhere
        sigmoids = shifted.sigmoid_()
        slopes = sigmoids.mul_(1 - sigmoids).mul_(self.alpha)  # v (B, L)
        totals = slopes.sum(dim=1)
        pulled = totals.new_zeros(batch).index_add_(0, pairs.rows, pulls)
        gradient = slopes.mul_(torch.where(totals > 0, -pulled / totals, 0.0)[:, None])
        gradient[pairs.rows, pairs.columns] += pulls
        return value, gradient

    def fused(self, slab: Slab) -> None:
        """Do the same over a slab of rows."""
        if self.k >= slab.width:
            slab.scores[:] = 0
        else:
            numba_losses.soft_topk(slab, self.k, self.alpha)

    def on_gpu(self, queries: Tensor, labels: Tensor, positives: Positives, shares: Shares) -> Tensor:
        """Do the same on an NVIDIA GPU."""
        from dexml.kernels.triton_losses import soft_topk

        products, tell = self.operands(queries), self.tell
        return soft_topk(queries, labels, positives, self.temperature, self.k, self.alpha, products, tell)
