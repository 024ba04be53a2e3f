"""Softmax over all labels (InfoNCE): the baseline, in which positives push each other down (METHODS §1)."""

from __future__ import annotations

import torch
from torch import Tensor

from dexml.kernels import numba_losses
from dexml.kernels.numba_losses import Slab
from dexml.losses.base import Pairs, ScoreLoss, Shares
from dexml.types import Positives


class Softmax(ScoreLoss):
    """−(1/B) Σ_i Σ_{p∈P_i} [s_ip − log Σ_j e^{s_ij}]."""

    def value_and_gradient(self, scores: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient |P_i|·softmax_ij − y_ij, over B."""
        batch = max(1, len(scores))
        of_pairs = scores[pairs.rows, pairs.columns]
        totals = torch.logsumexp(scores, dim=1)
        value = (totals[pairs.rows] - of_pairs).sum() / batch
        self.pulls = -torch.expm1(of_pairs - totals[pairs.rows]).clamp_(max=0)
        counts = scores.new_zeros(len(scores)).index_add_(0, pairs.rows, torch.ones_like(pairs.shares))
        gradient = scores.sub_(totals[:, None]).exp_().mul_((counts / batch)[:, None])
        gradient[pairs.rows, pairs.columns] -= 1 / batch
        return value, gradient

    def fused(self, slab: Slab) -> None:
        """Do the same over a slab of rows."""
        numba_losses.softmax(slab)

    def on_gpu(self, queries: Tensor, labels: Tensor, positives: Positives, shares: Shares) -> Tensor:
        """Do the same on an NVIDIA GPU."""
        from dexml.kernels.triton_losses import softmax_loss

        return softmax_loss(queries, labels, positives, self.temperature, products=self.operands(queries), tell=self.tell)
