"""Functions of score rows and their gradients a slab of query rows at a time: memory is set by the slab, not by B·L.

A slab's scores stay until its gradients are taken. They are computed a block of labels at a time, so that bfloat16 operands
need no copy of all labels either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dexml.kernels import numba_losses
from dexml.kernels.numba_losses import Slab
from dexml.kernels.threads import ONE_AT_A_TIME
from dexml.types import Positives

SLAB_BYTES = 33 << 20  # of scores
LABELS = 8192  # a block
ROWS_AT_LEAST = 8  # however many labels there are

Weighed = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Positive pairs: indptr (B+1), indices (nnz) and shares (nnz)."""


def values_and_gradients(
    queries: Tensor,
    labels: Tensor,
    pairs: Weighed,
    function: Callable[[Slab], None],
    temperature: float,
    factors: npt.NDArray[np.float64],
    half: bool = False,
    wanted: tuple[bool, bool] = (False, False),
    pulls: npt.NDArray[np.float64] | None = None,
) -> tuple[npt.NDArray[np.float64], Tensor | None, Tensor | None]:
    """Return the value v_i of each row of scores (B), and the gradients of Σ_i factors_i·v_i by the inputs that are wanted.

    Scores are `queries` (B, D) @ `labels` (L, D).T / τ, L ≥ 1, in float32 or, with `half`, of bfloat16 operands; gradients
    are summed in float32 and have the inputs' types. `function` fills a slab as `dexml.kernels.numba_losses` says, and
    with it the `pulls` (nnz) of its positives, where it has any.
    """
    types = queries.dtype, labels.dtype
    batch, count = len(queries), len(labels)
    room = -(-count // 16) * 16
    kind = torch.bfloat16 if half else torch.float32
    rows = max(1, min(batch, max(ROWS_AT_LEAST, SLAB_BYTES // (room * kind.itemsize))))
    buffer = torch.empty(rows, room, dtype=kind)
    queries = queries.detach().float()
    labels, scaled = labels.detach(), queries / temperature
    of_queries = torch.zeros(queries.shape) if wanted[0] else None
    of_labels = (torch.empty if batch else torch.zeros)(labels.shape) if wanted[1] else None
    values, indptr, (indices, shares) = np.zeros(batch), pairs[0], pairs[1:]
    pulls = np.empty(len(indices)) if pulls is None else pulls
    for start in range(0, batch, rows):
        part = slice(start, min(start + rows, batch))
        scores, left = buffer[: part.stop - start], scaled[part].to(kind)
        scores[:, count:] = -torch.inf
        for first in range(0, count, LABELS):
            block = labels[first : first + LABELS].to(kind)
            torch.mm(left, block.T, out=scores[:, first : first + len(block)])
        bits = scores.view(torch.int16 if half else torch.int32).numpy()
        coefficients = np.zeros(len(scores))
        with ONE_AT_A_TIME:
            numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
            ends = indptr[start : part.stop + 1]
            function(Slab(bits, half, count, ends, indices, shares, values[part], coefficients, pulls))
        # A row that has no gradient must not get one from a factor that is infinite, as that of log 0 may be.
        finite = np.where(coefficients == 0, 0.0, coefficients * (factors[part] / temperature))
        by_row = torch.from_numpy(finite).float()[:, None]
        weighted = (queries[part] * by_row).to(kind)
        for first in range(0, count, LABELS):
            gradient, block = scores[:, first : min(first + LABELS, count)], labels[first : first + LABELS]
            if of_queries is not None:
                _add_product(of_queries[part], gradient, block.to(kind), True)
            if of_labels is not None:
                _add_product(of_labels[first : first + LABELS], gradient.T, weighted, start > 0)
        if of_queries is not None:
            of_queries[part] *= by_row
    of_queries, of_labels = (g if g is None else g.to(t) for g, t in zip((of_queries, of_labels), types, strict=True))
    return values, of_queries, of_labels


def _add_product(there: Tensor, left: Tensor, right: Tensor, more: bool) -> None:
    """Add left @ right to float32 `there`, or write it there where there is not `more` to add to."""
    if left.dtype == there.dtype:
        there.addmm_(left, right, beta=1 if more else 0)
    elif more:
        there += left @ right
    else:
        there.copy_(left @ right)


class _RowValues(torch.autograd.Function):
    """Values (B) of score rows, float32; scores are computed again for the gradient, whose factors are known only then."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, labels: Tensor, pairs: Weighed, function: Callable[[Slab], None], temperature: float
    ) -> Tensor:
        ctx.save_for_backward(queries, labels)
        ctx.rest = pairs, function, temperature
        values, _, _ = values_and_gradients(queries, labels, pairs, function, temperature, np.zeros(len(queries)))
        return torch.from_numpy(values).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, ...]:
        (queries, labels), (pairs, function, temperature) = ctx.saved_tensors, ctx.rest
        _, of_queries, of_labels = values_and_gradients(
            queries, labels, pairs, function, temperature, factors.double().numpy(), wanted=ctx.needs_input_grad[:2]
        )
        return of_queries, of_labels, None, None, None


def negative_lse(queries: Tensor, labels: Tensor, positives: Positives, temperature: float) -> Tensor:
    """Return torch.logsumexp((queries @ labels.T / τ).masked_fill(positive, −∞), 1), float32 (B); −∞ without negatives.

    Differentiable in `queries` (B, D) and `labels` (L, D) on the CPU, L ≥ 1, which the caller has checked.
    """
    pairs = positives.indptr, positives.indices, np.zeros(len(positives.indices))
    value: Tensor = _RowValues.apply(  # type: ignore[no-untyped-call]
        queries, labels, pairs, numba_losses.negative_lse, temperature
    )
    return value


def topk_threshold(queries: Tensor, labels: Tensor, k: int, alpha: float, temperature: float) -> Tensor:
    """Return t (B) with torch.sigmoid(α·(queries @ labels.T / τ + t[:, None])).sum(1) == k, float32; +∞ where k ≥ L.

    Differentiable in `queries` (B, D) and `labels` (L, D) on the CPU, L ≥ 1, which the caller has checked.
    """
    none = np.zeros(len(queries) + 1, np.int64), np.empty(0, np.int64), np.empty(0)

    def function(slab: Slab) -> None:
        if k >= slab.width:
            slab.values[:], slab.scores[:] = np.inf, 0
        else:
            numba_losses.topk_threshold(slab, k, alpha)

    value: Tensor = _RowValues.apply(queries, labels, none, function, temperature)  # type: ignore[no-untyped-call]
    return value
