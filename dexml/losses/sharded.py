"""The losses over labels that are spread over ranks: the same values and gradients, from a few all-reduces per row.

Every rank has all queries (B, D) of the batch and a contiguous range of the labels. One MAX and one SUM per row give the exact
log-partition, each step of the soft top-k's threshold is one SUM of two numbers per row, and label gradients stay where their
labels are (METHODS §1). The collectives come from outside, so that this module knows no process group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from dexml.errors import InputError
from dexml.kernels.reference import at_least_float32
from dexml.losses.base import Loss, Pairs, ScaledLoss
from dexml.losses.bce import BinaryCrossEntropy
from dexml.losses.decoupled_softmax import DecoupledSoftmax
from dexml.losses.soft_topk import SoftTopK
from dexml.losses.softmax import Softmax
from dexml.losses.squared_hinge import SquaredHinge
from dexml.losses.z_loss import ZLoss, terms
from dexml.types import Positives

BLOCK_BYTES = 64 << 20  # of scores at a time on each rank


class Collectives(Protocol):
    """What the ranks do together. Each call must be made by all ranks, in the same order."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, bitwise the same on each; the tensor itself is overwritten."""

    def max(self, tensor: Tensor) -> Tensor:
        """Return the largest of each entry over all ranks, likewise."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows of the batch against this rank's labels.

    `scores` (b, L_r) may be overwritten; `pairs` are the positives among these, numbered within the block, `counts` (b) those
    among all labels. `batch` and `labels` are the sizes B and L of the whole.
    """

    scores: Tensor
    pairs: Pairs
    counts: Tensor
    batch: int
    labels: int
    ranks: Collectives

    def top(self) -> Tensor:
        """Return the largest score of each row over all ranks (b); −∞ where there is none."""
        return self.ranks.max(_largest(self.scores))

    def per_row(self, of_pairs: Tensor) -> Tensor:
        """Return the sums over each row's positives on all ranks (b, …) of what there is of each pair (nnz, …)."""
        sums = of_pairs.new_zeros(len(self.scores), *of_pairs.shape[1:])
        return self.ranks.sum(sums.index_add_(0, self.pairs.rows, of_pairs))


class ShardedLoss(Loss):
    """A loss of scores over all ranks' labels, of which this rank holds those from number `first` on.

    `whole_gradient` gives every rank the gradient of the queries by all labels, at the price of one all-reduce of (B, D).
    Without it each rank has the part by its own labels: enough where the parameters' gradients are summed over the ranks
    anyway, since they are linear in it. `block_bytes` bounds the scores in memory, and must be the same on all ranks.
    """

    def __init__(
        self, loss: Loss, first: int, ranks: Collectives, *, whole_gradient: bool = True, block_bytes: int = BLOCK_BYTES
    ) -> None:
        """Raises InputError for a loss that has no sharded form."""
        if type(loss) not in FORMS or not isinstance(loss, ScaledLoss):
            known = ", ".join(form.__name__ for form in FORMS)
            raise InputError(f"loss: {type(loss).__name__} cannot be spread over ranks (these can: {known})")
        self.loss = loss
        self.first = first
        self.ranks = ranks
        self.whole_gradient = whole_gradient
        self.block_bytes = block_bytes

    def __call__(self, queries: Tensor, labels: Tensor, positives: Positives) -> Tensor:
        """Return the loss over all labels, the same number on every rank, differentiable once in queries and labels.

        `queries` (B, D) and `positives` (B, L), numbered through all labels, are the same on every rank; `labels` (L_r, D) are
        this rank's, and `pulls` are those of its positives. Of float32 or float64 as the inputs are. Raises InputError for
        shapes that disagree.
        """
        last = self.first + len(labels)
        self.pulls = None
        if queries.ndim != 2 or labels.ndim != 2 or queries.shape[1] != labels.shape[1] or len(queries) != len(positives):
            raise InputError(
                f"queries (B, D), labels (L_r, D) and B rows of positives are needed, got {tuple(queries.shape)}, "
                f"{tuple(labels.shape)} and {len(positives)}"
            )
        if last > positives.num_labels:
            raise InputError(f"labels {self.first} to {last} are more than the {positives.num_labels} of the positives")
        if len(queries) == 0 or positives.num_labels == 0:
            return at_least_float32(queries).sum() * 0 + at_least_float32(labels).sum() * 0
        value: Tensor = _Sharded.apply(queries, labels, positives, self)  # type: ignore[no-untyped-call]
        return value

    def compute(self, queries: Tensor, labels: Tensor, positives: Positives) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, and its gradients by the queries (B, D) and by this rank's labels (L_r, D)."""
        loss, ranks = self.loss, self.ranks
        assert isinstance(loss, ScaledLoss)
        form = FORMS[type(loss)]
        left, right = loss.operand(at_least_float32(queries)), loss.operand(at_least_float32(labels))
        number = torch.promote_types(at_least_float32(queries).dtype, at_least_float32(labels).dtype)
        value = queries.new_zeros((), dtype=number)
        of_queries, of_labels = (torch.zeros_like(side, dtype=number) for side in (queries, labels))
        local, counts = self._pairs(positives, of_labels)
        pulls: list[Tensor | None] = []
        # From sizes that all ranks know, so that all make the same blocks: a rank's own width may be smaller or larger.
        rows = max(1, self.block_bytes // (number.itemsize * -(-positives.num_labels // ranks.size)))
        for start in range(0, len(queries), rows):
            some = slice(start, min(start + rows, len(queries)))
            inside = slice(*np.searchsorted(local.rows.cpu().numpy(), [some.start, some.stop]).tolist())
            pairs = Pairs(local.rows[inside] - start, local.columns[inside], local.shares[inside])
            scores = at_least_float32(left[some] @ right.T).div_(loss.temperature)
            block = Block(scores, pairs, counts[some], len(queries), positives.num_labels, ranks)
            loss.pulls = None
            part, gradient = form(loss, block)
            pulls.append(loss.pulls)
            value += part
            gradient = loss.operand(gradient.div_(loss.temperature))
            of_queries[some] = gradient @ right
            of_labels += gradient.T @ left[some]
        told = [some for some in pulls if some is not None]
        self.pulls = torch.cat(told) if len(told) == len(pulls) else None
        if self.whole_gradient:
            ranks.sum(of_queries)
        return ranks.sum(value), of_queries.to(queries.dtype), of_labels.to(labels.dtype)

    def _pairs(self, positives: Positives, of_labels: Tensor) -> tuple[Pairs, Tensor]:
        """Return the positives among this rank's labels, numbered within them, and each row's number of all (B)."""
        assert isinstance(self.loss, ScaledLoss)
        # Shares are drawn over all labels, by the same random state on every rank, and only then is this rank's part taken.
        every = Pairs.of(positives, self.loss.shares(positives), of_labels)
        mine = (every.columns >= self.first) & (every.columns < self.first + len(of_labels))
        counts = torch.from_numpy(np.diff(positives.indptr)).to(of_labels)
        return Pairs(every.rows[mine], every.columns[mine] - self.first, every.shares[mine]), counts


class _Sharded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, labels: Tensor, positives: Positives, loss: ShardedLoss) -> Tensor:
        # Both gradients are computed here, while the scores are at hand, and all ranks are: backward needs no other rank.
        value, *ctx.gradients = loss.compute(queries, labels, positives)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("a sharded loss gives its gradients away in its backward pass, which can be done once")
        of_queries, of_labels = (gradient.mul_(scale) for gradient in ctx.gradients)
        ctx.gradients = None
        return of_queries, of_labels, None, None


def decoupled_softmax(loss: DecoupledSoftmax, block: Block) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the loss and its gradient (b, L_r), as `DecoupledSoftmax.value_and_gradient` does."""
    scores, pairs = block.scores, block.pairs
    of_pairs = scores[pairs.rows, pairs.columns]
    scores[pairs.rows, pairs.columns] = -torch.inf
    top = block.top().nan_to_num(neginf=0.0)
    exponentials = scores.sub_(top[:, None]).exp_()  # 0 at the positives
    sums = block.ranks.sum(exponentials.sum(dim=1))
    gaps = top[pairs.rows] + sums.log()[pairs.rows] - of_pairs
    loss.tell(gaps)
    value = (pairs.shares * softplus(gaps)).sum() / block.batch
    pulls = pairs.shares * torch.sigmoid(gaps) / block.batch
    exponentials *= torch.where(sums > 0, block.per_row(pulls) / sums, 0.0)[:, None]
    exponentials[pairs.rows, pairs.columns] = -pulls
    return value, exponentials


def softmax(loss: Softmax, block: Block) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the loss and its gradient (b, L_r), as `Softmax.value_and_gradient` does."""
    scores, pairs = block.scores, block.pairs
    of_pairs = scores[pairs.rows, pairs.columns]
    top = block.top()
    totals = top + block.ranks.sum((scores - top[:, None]).exp_().sum(dim=1)).log()  # log Σ_j e^{s_j} over all labels
    loss.pulls = -torch.expm1(of_pairs - totals[pairs.rows]).clamp_(max=0)
    value = (totals[pairs.rows] - of_pairs).sum() / block.batch
    gradient = scores.sub_(totals[:, None]).exp_().mul_((block.counts / block.batch)[:, None])
    gradient[pairs.rows, pairs.columns] -= 1 / block.batch
    return value, gradient


def binary_cross_entropy(loss: BinaryCrossEntropy, block: Block) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the loss and its gradient (b, L_r); no rank needs another, but for the sum of the parts."""
    scores, pairs = block.scores, block.pairs
    count = block.batch * block.labels
    labelled = (block.counts > 0).to(scores)[:, None]
    value = ((softplus(scores) * labelled).sum() - scores[pairs.rows, pairs.columns].sum()) / count
    loss.tell(-scores[pairs.rows, pairs.columns])
    gradient = scores.sigmoid_().mul_(labelled / count)
    gradient[pairs.rows, pairs.columns] -= 1 / count
    return value, gradient


def squared_hinge(loss: SquaredHinge, block: Block) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the loss and its gradient (b, L_r); no rank needs another, but for the sum of the parts."""
    return loss.of_scores(block.scores, block.pairs, block.counts > 0, block.batch * block.labels)


def z_loss(loss: ZLoss, block: Block) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the loss and its gradient (b, L_r): its rows need four sums over the ranks."""
    scores, pairs, ranks = block.scores, block.pairs, block.ranks
    scores -= (ranks.sum(scores.sum(dim=1)) / block.labels)[:, None]
    squares = ranks.sum(scores.square().sum(dim=1))
    of_pairs = scores[pairs.rows, pairs.columns]
    rest = terms(loss, of_pairs, pairs, block.labels, block.counts, squares, block.per_row)
    gradient = scores.mul_(2 * rest.of_squares[:, None]).add_(rest.of_sums[:, None])
    gradient[pairs.rows, pairs.columns] += rest.of_pairs
    return rest.value / block.batch, gradient.div_(block.batch)


def soft_topk(loss: SoftTopK, block: Block) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the loss and its gradient (b, L_r), as `SoftTopK.value_and_gradient` does."""
    scores, pairs = block.scores, block.pairs
    if loss.k >= block.labels:
        return scores.sum() * 0, torch.zeros_like(scores)
    shifted = scores.add_(threshold(block, loss.k, loss.alpha)[:, None]).mul_(loss.alpha)
    of_pairs = shifted[pairs.rows, pairs.columns]
    loss.tell(-of_pairs)
    value = (pairs.shares * softplus(-of_pairs)).sum() / block.batch
    pulls = -pairs.shares * loss.alpha * torch.sigmoid(-of_pairs) / block.batch
    sigmoids = shifted.sigmoid_()
    slopes = sigmoids.mul_(1 - sigmoids).mul_(loss.alpha)
    totals = block.ranks.sum(slopes.sum(dim=1))
    gradient = slopes.mul_(torch.where(totals > 0, -block.per_row(pulls) / totals, 0.0)[:, None])
    gradient[pairs.rows, pairs.columns] += pulls
    return value, gradient


def threshold(block: Block, k: float, alpha: float, passes: int = 100) -> Tensor:
    """Return t (b) with Σ_j σ(α(s_ij + t_i)) = k < L over all ranks' labels: `dexml.kernels.reference.threshold`, whose two
    sums per row are taken over the ranks. All ranks see the same sums, and so take the same steps and stop together.
    """
    scores, ranks = block.scores, block.ranks
    shift = math.log(block.labels / k - 1) / alpha
    top, bottom = ranks.max(torch.stack([_largest(scores), _largest(-scores)]))
    low, high = -top - shift, bottom - shift
    t: Tensor = low.clone()
    tolerance = 4 * torch.finfo(scores.dtype).eps
    for _ in range(passes):
        sigmoid = torch.sigmoid(alpha * (scores + t[:, None]))
        total, slope = ranks.sum(torch.stack([sigmoid.sum(1), alpha * (sigmoid * (1 - sigmoid)).sum(1)]))
        low, high = torch.where(total <= k, t, low), torch.where(total >= k, t, high)
        middle, following = (low + high) / 2, t - torch.log(total / k) * total / slope
        following = torch.where((following >= low) & (following <= high), following, middle)
        scale = following.abs() + 1 / alpha
        done = ((following - t).abs() <= tolerance * scale) | (high - low <= tolerance * scale)
        t = following
        if bool(done.all()):
            break
    return t


def _largest(scores: Tensor) -> Tensor:
    """Return the largest of each row; −∞ where a rank has no labels."""
    return scores.amax(dim=1) if scores.shape[1] else scores.new_full((len(scores),), -torch.inf)


FORMS: Mapping[type[Loss], Callable[[Any, Block], tuple[Tensor, Tensor]]] = {
    DecoupledSoftmax: decoupled_softmax,
    SoftTopK: soft_topk,
    Softmax: softmax,
    BinaryCrossEntropy: binary_cross_entropy,
    SquaredHinge: squared_hinge,
    ZLoss: z_loss,
}
