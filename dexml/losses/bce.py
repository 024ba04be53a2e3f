"""Binary cross-entropy over all (query, label) pairs: every label a question of its own (METHODS §1)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from dexml.kernels import numba_losses
from dexml.kernels.numba_losses import Slab
from dexml.losses.base import Pairs, ScoreLoss, Shares
from dexml.types import Positives


class BinaryCrossEntropy(ScoreLoss):
    """(1/(B·L)) [Σ_ij log(1 + e^{s_ij}) − Σ_{positive pairs} s_ip], over the rows that have a positive."""

    def value_and_gradient(self, scores: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient (σ(s_ij) − y_ij)/(B·L)."""
        count = max(1, scores.numel())
        # A row without positives is a row nobody labelled, not one to which nothing applies: it adds nothing.
        labelled = scores.new_zeros(len(scores)).index_fill_(0, pairs.rows, 1.0)[:, None]
        value = ((softplus(scores) * labelled).sum() - scores[pairs.rows, pairs.columns].sum()) / count
        self.tell(-scores[pairs.rows, pairs.columns])
        gradient = scores.sigmoid_().mul_(labelled / count)
        gradient[pairs.rows, pairs.columns] -= 1 / count
        return value, gradient

    def fused(self, slab: Slab) -> None:
        """Do the same over a slab of rows."""
        numba_losses.binary_cross_entropy(slab)

    def on_gpu(self, queries: Tensor, labels: Tensor, positives: Positives, shares: Shares) -> Tensor:
        """Do the same on an NVIDIA GPU."""
        from dexml.kernels.triton_losses import binary_cross_entropy

        products = self.operands(queries)
        return binary_cross_entropy(queries, labels, positives, self.temperature, products=products, tell=self.tell)
