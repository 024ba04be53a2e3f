"""Squared hinge of one-vs-all L2-SVMs over all (query, label) pairs: the loss of DiSMEC, Parabel and PECOS."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from dexml.kernels import numba_losses
from dexml.kernels.numba_losses import Slab
from dexml.losses.base import Backend, Pairs, Products, ScoreLoss, Shares
from dexml.types import Positives


class SquaredHinge(ScoreLoss):
    """(1/(B·L)) [Σ_{negative pairs} max(0, 1 + o)² + w Σ_{positive pairs} max(0, 1 − o)²], over the rows that have a positive.

    o = (cos − `boundary`)/τ: unit rows have no bias of their own, and the cosines of texts that have nothing in common lie
    above 0. τ is the margin in units of the cosine. Positives are few among many labels, so that each counts
    `positive_weight` times.
    """

    def __init__(
        self,
        *,
        temperature: Annotated[float, Gt(0)] = 0.2,
        products: Products = "auto",
        backend: Backend = "auto",
        boundary: Annotated[float, Ge(-1), Le(1)] = 0.4,
        positive_weight: Annotated[float, Gt(0)] = 20.0,
    ) -> None:
        super().__init__(temperature=temperature, products=products, backend=backend)
        self.boundary, self.positive_weight = boundary / temperature, positive_weight

    def value_and_gradient(self, scores: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient, which is exactly 0 at every pair on the right side of its margin."""
        labelled = torch.zeros(len(scores), dtype=torch.bool, device=scores.device).index_fill_(0, pairs.rows, True)
        return self.of_scores(scores, pairs, labelled, max(1, scores.numel()))

    def of_scores(self, scores: Tensor, pairs: Pairs, labelled: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the sum over `scores` (b, L), and its gradient, both divided by `count`; `labelled` (b) rows count."""
        gaps = 1 + self.boundary - scores[pairs.rows, pairs.columns]
        gaps = torch.where(gaps <= 0, 0.0, gaps)  # a comparison that NaN fails, so that it is seen
        scores[pairs.rows, pairs.columns] = -torch.inf
        scores += 1 - self.boundary
        hinges = scores.masked_fill_((scores <= 0) | ~labelled[:, None], 0.0)
        value = (hinges.square().sum() + self.positive_weight * gaps.square().sum()) / count
        gradient = hinges.mul_(2 / count)
        gradient[pairs.rows, pairs.columns] = -2 * self.positive_weight / count * gaps
        return value, gradient

    def fused(self, slab: Slab) -> None:
        """Do the same over a slab of rows."""
        numba_losses.squared_hinge(slab, self.boundary, self.positive_weight)

    def on_gpu(self, queries: Tensor, labels: Tensor, positives: Positives, shares: Shares) -> Tensor:
        """Do the same on an NVIDIA GPU."""
        from dexml.kernels.triton_losses import squared_hinge

        weighing = self.temperature, self.boundary, self.positive_weight
        return squared_hinge(queries, labels, positives, *weighing, products=self.operands(queries))
