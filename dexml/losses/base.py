"""What a training loss is: embeddings of queries and of all labels in, one scalar out.

A loss of the scores alone subclasses `ScoreLoss` and gives its value and its gradient in closed form; one (B, L) buffer then
holds first the scores and then the gradient, where autograd would keep several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor
from torch.autograd.function import once_differentiable

from dexml.device import fast_bfloat16
from dexml.types import Positives

Products = Literal["auto", "float32", "bfloat16"]


class Loss(ABC):
    """A loss over all labels. Options are keyword-only; rows without positives add nothing; inputs are never edited."""

    @abstractmethod
    def __call__(self, queries: Tensor, labels: Tensor, positives: Positives) -> Tensor:
        """Return the scalar loss of `queries` (B, D) against `labels` (L, D), differentiable in both."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """The positive pairs of a batch: `rows` and `columns` int64 (nnz), `shares` 1/|P_i| of each pair's row (nnz)."""

    rows: Tensor
    columns: Tensor
    shares: Tensor

    @staticmethod
    def of(positives: Positives, like: Tensor) -> Pairs:
        """Return the pairs with shares in the number type and on the device of `like`."""
        counts = np.diff(positives.indptr)
        rows = torch.from_numpy(np.repeat(np.arange(len(positives)), counts)).to(like.device)
        shares = torch.from_numpy(1 / np.repeat(counts, counts)).to(like)
        return Pairs(rows, torch.from_numpy(positives.indices).to(like.device), shares)


class ScoreLoss(Loss):
    """A loss of the scores s = queries @ labels.T / τ.

    `products` names the operands of the three matrix products: "bfloat16" is 2 to 2.5 times faster on CPUs that have it, and
    "auto" takes it there. Sums and exponentials are float32 in either case; float64 inputs stay float64 throughout.
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

    def operand(self, tensor: Tensor) -> Tensor:
        """Return a tensor as the matrix products read it."""
        if tensor.dtype == torch.float64 or self.products == "float32":
            return tensor
        if self.products == "bfloat16" or (tensor.device.type == "cpu" and fast_bfloat16()):
            return tensor.bfloat16()
        return tensor


class _OfScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, labels: Tensor, positives: Positives, loss: ScoreLoss) -> Tensor:
        left, right = loss.operand(queries), loss.operand(labels)
        scores = (left @ right.T).to(queries.dtype).div_(loss.temperature)
        value, gradient = loss.value_and_gradient(scores, Pairs.of(positives, scores))
        gradient = loss.operand(gradient.div_(loss.temperature))
        # Both gradients are computed here, while the buffer is at hand, and only scaled in the backward pass.
        ctx.save_for_backward((gradient @ right).to(queries.dtype), (gradient.T @ left).to(labels.dtype))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_queries, of_labels = ctx.saved_tensors
        return of_queries * scale, of_labels * scale, None, None
