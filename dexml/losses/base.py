"""What a training loss is: embeddings of queries and of all labels in, one scalar out.

A loss of the scores alone subclasses `ScoreLoss` and gives its value and its gradient in closed form. In float32 on a CPU the
(B, L) scores exist a slab of rows at a time, in one buffer that holds first the scores and then the gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Gt
from torch import Tensor
from torch.autograd.function import once_differentiable

from dexml.device import fast_bfloat16
from dexml.kernels.numba_losses import Slab
from dexml.losses.slabs import value_and_gradients
from dexml.types import Positives

Products = Literal["auto", "float32", "bfloat16"]


class Loss(ABC):
    """A loss over all labels. Options are keyword-only; rows without positives add nothing; inputs are never edited."""

    @abstractmethod
    def __call__(self, queries: Tensor, labels: Tensor, positives: Positives) -> Tensor:
        """Return the scalar loss of `queries` (B, D) against `labels` (L, D), differentiable in both."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """The positive pairs of a batch: `rows` and `columns` int64 (nnz), `shares` of each pair in its row (nnz)."""

    rows: Tensor
    columns: Tensor
    shares: Tensor

    @staticmethod
    def of(positives: Positives, shares: npt.NDArray[np.float64], like: Tensor) -> Pairs:
        """Return the pairs with shares in the number type and on the device of `like`."""
        rows = torch.from_numpy(np.repeat(np.arange(len(positives)), np.diff(positives.indptr))).to(like.device)
        return Pairs(rows, torch.from_numpy(positives.indices).to(like.device), torch.from_numpy(shares).to(like))


class ScoreLoss(Loss):
    """A loss of the scores s = queries @ labels.T / τ.

    `products` names the operands of the three matrix products: "bfloat16" is 2 to 2.5 times faster on CPUs that have it, and
    "auto" takes it there. Scores are then rounded to
    bfloat16 as well, and gradients differ by about 3e-3; float64 inputs stay float64 throughout.
    """

    def __init__(self, *, temperature: Annotated[float, Gt(0)] = 0.05, products: Products = "auto") -> None:
        self.temperature = temperature
        self.products = products

    def __call__(self, queries: Tensor, labels: Tensor, positives: Positives) -> Tensor:
        """Return the scalar loss."""
        if queries.ndim != 2 or labels.ndim != 2 or queries.shape[1] != labels.shape[1]:
            raise ValueError(f"loss: queries {tuple(queries.shape)} and labels {tuple(labels.shape)} must be (B, D) and (L, D)")
        if len(positives) != len(queries) or positives.num_labels != len(labels):
            raise ValueError(
                f"loss: positives of shape ({len(positives)}, {positives.num_labels}) for {len(queries)} queries and "
                f"{len(labels)} labels"
            )
        value: Tensor = _OfScores.apply(queries, labels, positives, self)  # type: ignore[no-untyped-call]
        return value

    @abstractmethod
    def value_and_gradient(self, scores: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the scalar loss and its gradient (B, L) by `scores` (B, L), a buffer that may be overwritten."""

    @abstractmethod
    def fused(self, slab: Slab) -> None:
        """Do the same over the rows of a slab, as `dexml.kernels.numba_losses` says."""

    def shares(self, positives: Positives) -> npt.NDArray[np.float64]:
        """Return the weight of each positive in its row (nnz), 1/|P|."""
        counts = np.diff(positives.indptr)
        return 1 / np.repeat(counts, counts)

    def half(self, tensor: Tensor) -> bool:
        """Return whether the products of float32 tensors take bfloat16 operands."""
        if self.products == "auto":
            return tensor.device.type == "cpu" and fast_bfloat16()
        return self.products == "bfloat16"

    def operand(self, tensor: Tensor) -> Tensor:
        """Return a tensor as the matrix products read it."""
        return tensor.bfloat16() if tensor.dtype != torch.float64 and self.half(tensor) else tensor


class _OfScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, labels: Tensor, positives: Positives, loss: ScoreLoss) -> Tensor:
        ctx.save_for_backward(queries, labels)
        ctx.again = lambda: _compute(queries.detach(), labels.detach(), positives, loss, ctx.needs_input_grad[:2])
        # Both gradients are computed here, while the scores are at hand, and only scaled in the backward pass.
        value: Tensor
        value, *gradients = ctx.again()
        ctx.gradients = gradients
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        # Given away, not copied: they are as large as the inputs. A second pass over a kept graph computes them again.
        of_queries, of_labels = ctx.gradients or ctx.again()[1:]
        ctx.gradients = None
        if scale != 1:
            of_queries, of_labels = (g if g is None else g.mul_(scale) for g in (of_queries, of_labels))
        return of_queries, of_labels, None, None


def _compute(
    queries: Tensor, labels: Tensor, positives: Positives, loss: ScoreLoss, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if queries.dtype == labels.dtype == torch.float32 and queries.device.type == labels.device.type == "cpu" and len(labels):
        pairs = (positives.indptr, positives.indices, loss.shares(positives))
        half = loss.half(queries)
        return value_and_gradients(queries.contiguous(), labels.contiguous(), pairs, loss.fused, loss.temperature, half, wanted)
    left, right = loss.operand(queries), loss.operand(labels)
    scores = (left @ right.T).to(queries.dtype).div_(loss.temperature)
    value, gradient = loss.value_and_gradient(scores, Pairs.of(positives, loss.shares(positives), scores))
    gradient = loss.operand(gradient.div_(loss.temperature))
    return value, (gradient @ right).to(queries.dtype), (gradient.T @ left).to(labels.dtype)
