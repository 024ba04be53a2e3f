"""StableMax in place of the softmax (Prieto et al., 2025, arXiv 2501.04697): linear in the scores, it does not collapse."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dexml.errors import InputError
from dexml.kernels import numba_losses
from dexml.kernels.numba_losses import Slab
from dexml.kernels.reference import at_least_float32, log_stable
from dexml.losses.base import Pairs, ScoreLoss, Shares
from dexml.types import Positives

log = logging.getLogger(__name__)

UNIT = 1e-2  # by which a length may differ from 1; bfloat16 rounds more than float32


class StableMax(ScoreLoss):
    """−(1/B) Σ_i (1/|P_i|) Σ_{p∈P_i} log [S(s_ip) / (S(s_ip) + Σ_{n∉P_i} S(s_in))], S(x) = 1 + x, or 1/(1 − x) for x < 0.

    log S(x) = sign(x) log(1 + |x|): a softmax of scores that count by their logarithm. Scores of rows of length 1 reach from
    −1/τ to 1/τ, where S(1/τ)/S(−1/τ) = (1 + 1/τ)²: 441 at τ = 0.05, so that more than 441 negatives outweigh the best positive.
    It is for shortlists and for rows of any length. All labels of unit rows beyond that bound are an InputError by `check`, a
    shortlist of unit rows beyond it is a warning in the log, once.
    """

    _warned = False

    def __call__(self, queries: Tensor, labels: Tensor, positives: Positives) -> Tensor:
        """Return the scalar loss, as `ScoreLoss` does."""
        value = super().__call__(queries, labels, positives)
        if not self._warned and len(labels) - 1 > self.outweighed and _unit(queries) and _unit(labels):
            log.warning("stablemax %s", self._beyond(len(labels)))
            self._warned = True
        return value

    @property
    def outweighed(self) -> float:
        """How many negatives a positive can outweigh at most where all rows are of length 1: (1 + 1/τ)²."""
        return (1 + 1 / self.temperature) ** 2

    def check(self, labels: int) -> None:
        """Raise InputError where a positive among so many labels of unit rows cannot have half of the probability."""
        if labels - 1 > self.outweighed:
            raise InputError(f"loss.name: 'stablemax' {self._beyond(labels)}")

    def _beyond(self, labels: int) -> str:
        temperature = 1 / (math.sqrt(labels - 1) - 1)
        place = 10 ** (math.floor(math.log10(temperature)) - 1)  # of its second digit
        temperature = math.floor(temperature / place) * place
        return (
            f"cannot tell a positive from {labels - 1:,} negatives: with rows of length 1 and temperature {self.temperature:g} "
            f"it outweighs {self.outweighed:,.0f} at most; score a shortlist (finetune.negatives 'in-batch' or 'mined'), or "
            f"set loss.temperature to {temperature:.2g} or less"
        )

    def value_and_gradient(self, scores: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient; positives leave the sum before it is taken."""
        batch, shares = max(1, len(scores)), pairs.shares
        of_pairs = scores[pairs.rows, pairs.columns]
        scores[pairs.rows, pairs.columns] = -torch.inf
        inverse = 1 / (1 + scores.abs())
        sums = torch.where(scores >= 0, 1 + scores, inverse).sum(dim=1)
        gaps = sums.log()[pairs.rows] - log_stable(of_pairs)
        self.tell(gaps)
        value = (shares * softplus(gaps)).sum() / batch
        pulls = shares * torch.sigmoid(gaps) / batch
        per_row = sums.new_zeros(len(sums)).index_add_(0, pairs.rows, pulls)
        gradient = torch.where(scores >= 0, 1.0, inverse.square_()).mul_(torch.where(sums > 0, per_row / sums, 0.0)[:, None])
        gradient[pairs.rows, pairs.columns] = -pulls / (1 + of_pairs.abs())
        return value, gradient

    def fused(self, slab: Slab) -> None:
        """Do the same over a slab of rows."""
        numba_losses.stablemax(slab)

    def on_gpu(self, queries: Tensor, labels: Tensor, positives: Positives, shares: Shares) -> Tensor:
        """Do the same on an NVIDIA GPU."""
        from dexml.kernels.triton_losses import stablemax

        weights = torch.from_numpy(shares).to(queries.device, torch.float32)
        products = self.operands(queries)
        return stablemax(queries, labels, positives, self.temperature, weights, products=products, tell=self.tell)


def _unit(rows: Tensor) -> bool:
    lengths = at_least_float32(rows.detach()).norm(dim=1)
    return bool(((lengths - 1).abs() < UNIT).all())
