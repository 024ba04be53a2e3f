"""Decoupled softmax: each positive against the negatives alone (DEXML, ICLR 2024; METHODS §1)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor
from torch.nn.functional import softplus

from dexml.kernels import numba_losses
from dexml.kernels.numba_losses import Slab
from dexml.losses.base import Backend, Pairs, Products, ScoreLoss, Shares
from dexml.types import Positives


class DecoupledSoftmax(ScoreLoss):
    """−(1/B) Σ_i (1/|P_i|) Σ_{p∈P_i} [s_ip − log(e^{s_ip} + Σ_{n∉P_i} e^{s_in})].

    `positives = "one"` is the paper's recipe: one positive of each row, drawn anew at each step, the others masked.
    """

    def __init__(
        self,
        *,
        temperature: Annotated[float, Gt(0)] = 0.05,
        products: Products = "auto",
        backend: Backend = "auto",
        positives: Literal["all", "one"] = "all",
    ) -> None:
        super().__init__(temperature=temperature, products=products, backend=backend)
        self.positives = positives

    def value_and_gradient(self, scores: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient; positives leave the sum before it is taken, never by subtraction."""
        batch = max(1, len(scores))
        shares = pairs.shares
        of_pairs = scores[pairs.rows, pairs.columns]
        scores[pairs.rows, pairs.columns] = -torch.inf
        top = scores.amax(dim=1, keepdim=True).nan_to_num(neginf=0.0) if scores.shape[1] else scores.sum(1, keepdim=True)
        exponentials = scores.sub_(top).exp_()  # (B, L), 0 at the positives
        sums = exponentials.sum(dim=1)
        gaps = top[:, 0][pairs.rows] + sums.log()[pairs.rows] - of_pairs  # log Σ_n e^{s_n} − s_p; −∞ without negatives
        self.tell(gaps)
        value = (shares * softplus(gaps)).sum() / batch
        pulls = shares * torch.sigmoid(gaps) / batch
        per_row = sums.new_zeros(len(sums)).index_add_(0, pairs.rows, pulls)
        exponentials *= torch.where(sums > 0, per_row / sums, 0.0)[:, None]
        exponentials[pairs.rows, pairs.columns] = -pulls
        return value, exponentials

    def fused(self, slab: Slab) -> None:
        """Do the same over a slab of rows."""
        numba_losses.decoupled_softmax(slab)

    def on_gpu(self, queries: Tensor, labels: Tensor, positives: Positives, shares: Shares) -> Tensor:
        """Do the same on an NVIDIA GPU."""
        from dexml.kernels.triton_losses import decoupled_softmax

        weights = torch.from_numpy(shares).to(queries.device, torch.float32)
        products = self.operands(queries)
        return decoupled_softmax(queries, labels, positives, self.temperature, weights, products=products, tell=self.tell)

    def shares(self, positives: Positives) -> Shares:
        """Return 1/|P| of each positive, or 1 for one positive per row, drawn uniformly by torch's generator, and 0 else."""
        if self.positives == "all" or len(positives.indices) == 0:
            return super().shares(positives)
        counts = np.diff(positives.indptr)
        drawn = (torch.rand(len(positives), dtype=torch.float64).numpy() * counts).astype(np.int64)
        shares = np.zeros(len(positives.indices))
        shares[(positives.indptr[:-1] + drawn)[counts > 0]] = 1
        return shares
