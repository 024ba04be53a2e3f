"""What a training loss is: embeddings of queries and of all labels in, one scalar out.

A loss of the scores alone subclasses `ScoreLoss` and says three times what it is, once for each kernel backend: on an NVIDIA
GPU it calls the fused Triton kernels, on a CPU it fills slabs of score rows in numba, and else, as in float64, it takes the
whole (B, L) scores in one buffer that holds first the scores and then the gradient.
"""

from __future__ import annotations

import logging
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
from dexml.errors import InputError
from dexml.kernels import KERNELS
from dexml.kernels.checks import check_pairs
from dexml.kernels.numba_losses import Slab
from dexml.kernels.numba_slabs import values_and_gradients
from dexml.kernels.reference import at_least_float32, positive_pairs
from dexml.types import Positives, Problem

log = logging.getLogger(__name__)

Products = Literal["auto", "float32", "bfloat16"]
Backend = Literal["auto", "triton", "numba", "reference"]
Shares = npt.NDArray[np.float64]


class Loss(ABC):
    """A loss over all labels. Options are keyword-only; rows without positives add nothing; inputs are never edited."""

    pulls: Tensor | None = None
    """What is left of the pull on each positive of the last call (nnz): 1 − p, from 1 at the start to 0 once it is learned.

    NaN where a row asks nothing; None where a loss does not tell.
    """

    def check(self, labels: int) -> None:
        """Raise InputError where this loss cannot tell a positive from the rest of so many labels, all of unit rows."""
        return None

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
    def of(positives: Positives, shares: Shares, like: Tensor) -> Pairs:
        """Return the pairs with shares in the number type and on the device of `like`."""
        return Pairs(*positive_pairs(positives, like.device), torch.from_numpy(shares).to(like))


class ScaledLoss(Loss):
    """A loss of the scores s = queries @ labels.T / τ, whatever way it takes to them."""

    def __init__(self, *, temperature: Annotated[float, Gt(0)] = 0.05) -> None:
        self.temperature = temperature

    def shares(self, positives: Positives) -> Shares:
        """Return the share of each positive in its row (nnz), 1/|P|, or by the weights of soft positives; 1 in all."""
        counts = np.diff(positives.indptr)
        if positives.weights is None:
            return 1 / np.repeat(counts, counts)
        sums = np.bincount(np.repeat(np.arange(len(counts)), counts), weights=positives.weights, minlength=len(counts))
        return positives.weights / np.repeat(sums, counts)

    def operand(self, tensor: Tensor) -> Tensor:
        """Return a tensor as the matrix products read it."""
        return tensor


class ScoreLoss(ScaledLoss):
    """A loss that is computed from its scores, row by row.

    `products` names the operands of the three matrix products: "bfloat16" is 2 to 2.5 times faster on CPUs that have it, more
    on GPUs, and "auto" takes it there. Scores are then rounded to bfloat16 as well, and gradients differ by about 3e-3;
    float64 inputs stay float64 throughout. `backend` is the row of KERNELS that computes; "auto" is the first that can.
    """

    def __init__(
        self, *, temperature: Annotated[float, Gt(0)] = 0.05, products: Products = "auto", backend: Backend = "auto"
    ) -> None:
        super().__init__(temperature=temperature)
        self.products = products
        self.backend = backend
        self._said = ""

    def __call__(self, queries: Tensor, labels: Tensor, positives: Positives) -> Tensor:
        """Return the scalar loss, float32, or float64 of float64 inputs; NaN where an embedding is not finite.

        Raises InputError for shapes that disagree, and when the backend asked for cannot serve.
        """
        check_pairs(queries, labels, positives)
        self.pulls = None
        if len(queries) == 0 or len(labels) == 0:
            return at_least_float32(queries).sum() * 0 + at_least_float32(labels).sum() * 0
        backend, shares = self.serving(queries, labels), self.shares(positives)
        if backend == "triton":
            return self.on_gpu(queries, labels, positives, shares)
        compute = _by_slabs if backend == "numba" else _whole
        value: Tensor = _OfScores.apply(queries, labels, positives, shares, self, compute)  # type: ignore[no-untyped-call]
        return value

    def serving(self, queries: Tensor, labels: Tensor) -> str:
        """Return the name of the kernel backend that computes this loss of `queries` (B, D) and `labels` (L, D).

        Raises InputError when the one asked for cannot.
        """
        number = torch.promote_types(queries.dtype, labels.dtype)
        problem = Problem(queries.device.type, number, len(queries), len(labels), queries.shape[1], needs_grad=True)
        asked = list(KERNELS) if self.backend == "auto" else [self.backend]
        reasons: list[str] = []
        for name in asked:
            reason = KERNELS[name].unsupported(problem)
            if reason is None:
                if name != self._said:
                    log.info("%s by the %s kernels%s", type(self).__name__, name, "".join(f"; {r}" for r in reasons))
                self._said = name
                return name
            reasons.append(f"{name}: {reason}")
        raise InputError(f"no kernel backend serves this loss ({'; '.join(reasons)})")

    def tell(self, gaps: Tensor) -> None:
        """Keep the pulls σ(gap) of positives: gaps (nnz) are how far what they stand against is above them, −∞ for nothing."""
        self.pulls = torch.sigmoid(gaps.detach()).masked_fill_(gaps == -torch.inf, torch.nan)

    @abstractmethod
    def value_and_gradient(self, scores: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the scalar loss and its gradient (B, L) by `scores` (B, L), a buffer that may be overwritten."""

    @abstractmethod
    def fused(self, slab: Slab) -> None:
        """Do the same over the rows of a slab, as `dexml.kernels.numba_losses` says."""

    @abstractmethod
    def on_gpu(self, queries: Tensor, labels: Tensor, positives: Positives, shares: Shares) -> Tensor:
        """Return the scalar loss, differentiable, by `dexml.kernels.triton_losses`; `shares` as `self.shares` drew them."""

    def half(self, tensor: Tensor) -> bool:
        """Return whether the products of float32 tensors take bfloat16 operands."""
        if self.products != "auto":
            return self.products == "bfloat16"
        if tensor.device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return tensor.device.type == "cpu" and fast_bfloat16()

    def operands(self, tensor: Tensor) -> Literal["float32", "bfloat16"]:
        """Return what the Triton kernels multiply."""
        return "bfloat16" if self.half(tensor) else "float32"

    def operand(self, tensor: Tensor) -> Tensor:
        """Return a tensor as the matrix products read it."""
        return tensor.bfloat16() if tensor.dtype != torch.float64 and self.half(tensor) else tensor


class _OfScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, labels: Tensor, positives: Positives, shares: Shares, loss: ScoreLoss, compute: Any
    ) -> Tensor:
        ctx.save_for_backward(queries, labels)
        ctx.rest = compute, (positives, shares, loss, ctx.needs_input_grad[:2])
        # Both gradients are computed here, while the scores are at hand, and only scaled in the backward pass.
        value: Tensor
        value, *gradients = compute(queries, labels, *ctx.rest[1])
        ctx.gradients = gradients
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # Given away, not copied: they are as large as the inputs. A second pass over a kept graph computes them again.
        compute, rest = ctx.rest
        of_queries, of_labels = ctx.gradients or compute(*ctx.saved_tensors, *rest)[1:]
        ctx.gradients = None
        if scale != 1:
            of_queries, of_labels = (g if g is None else g.mul_(scale) for g in (of_queries, of_labels))
        return of_queries, of_labels, None, None, None, None


def _by_slabs(
    queries: Tensor, labels: Tensor, positives: Positives, shares: Shares, loss: ScoreLoss, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the loss and its gradients without the score matrix, in float32 on a CPU."""
    pairs, factors = (positives.indptr, positives.indices, shares), np.full(len(queries), 1 / len(queries))
    pulls = np.full(len(positives.indices), np.nan)
    values, of_queries, of_labels = values_and_gradients(
        queries, labels, pairs, loss.fused, loss.temperature, factors, loss.half(queries), wanted, pulls
    )
    loss.pulls = torch.from_numpy(pulls)
    return torch.tensor(values.mean(), dtype=torch.float32), of_queries, of_labels


def _whole(
    queries: Tensor, labels: Tensor, positives: Positives, shares: Shares, loss: ScoreLoss, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and its gradients by the whole score matrix, in any number type on any device."""
    left, right = loss.operand(at_least_float32(queries)), loss.operand(at_least_float32(labels))
    scores = at_least_float32(left @ right.T).div_(loss.temperature)
    value, gradient = loss.value_and_gradient(scores, Pairs.of(positives, shares, scores))
    gradient = loss.operand(gradient.div_(loss.temperature))
    return value, (gradient @ right).to(queries.dtype), (gradient.T @ left).to(labels.dtype)
