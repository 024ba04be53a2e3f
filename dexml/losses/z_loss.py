"""Z-loss: how far a positive stands above all outputs, in their own standard deviations (de Brébisson and Vincent, 2016).

It needs a row of scores only through its sum, its sum of squares and its positives, and so no score at all but those: for
labels Y with mean m and covariance C, the mean score of a query x is ⟨x, m⟩ and their variance xᵀCx. A step costs L·D² for C
and D² for each query, and D² alone where the labels stand still (`Moments`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from dexml.kernels.checks import check_pairs
from dexml.kernels.reference import at_least_float32
from dexml.losses.base import Pairs, ScaledLoss
from dexml.types import Positives

FLAT = 1e-6  # a standard deviation, against the largest deviation of the row, that counts as none


@dataclass(frozen=True, eq=False)
class Moments:
    """What Z-loss must know of all labels: `mean` m (D) and `covariance` C = (1/L) Σ (y − m)(y − m)ᵀ (D, D), of L = `count`."""

    mean: Tensor
    covariance: Tensor
    count: int

    @staticmethod
    def of(labels: Tensor) -> Moments:
        """Return those of `labels` (L, D), L ≥ 1, differentiable. Centred first, so that nothing cancels."""
        labels = at_least_float32(labels)
        mean = labels.mean(dim=0)
        centred = labels - mean
        return Moments(mean, centred.T @ centred / len(labels), len(labels))


@dataclass(frozen=True, eq=False)
class Terms:
    """Σ_i Σ_p share_p·L_p and its derivatives, given scores whose mean over all labels is 0.

    The gradient by the scores of row i is `of_sums`_i + 2·`of_squares`_i·s_ij, and at its positives `of_pairs` (nnz) more.
    """

    value: Tensor
    of_sums: Tensor
    of_squares: Tensor
    of_pairs: Tensor


class ZLoss(ScaledLoss):
    """(1/B) Σ_i (1/|P_i|) Σ_{p∈P_i} (1/a) log(1 + e^{a(b − z_ip)}), z_ip = (s_ip − μ_ip)/σ_ip.

    A positive is pulled until it stands b standard deviations above the rest: 0 is enough among tens of outputs, and too little
    among thousands. μ_ip and σ_ip are over p and the negatives of the row: other positives do not compete. L(α·s + β) = L(s)
    for α > 0, so that the temperature changes nothing but what is made of scores later. A row of equal scores pulls nothing.
    """

    def __init__(
        self, *, temperature: Annotated[float, Gt(0)] = 0.05, a: Annotated[float, Gt(0)] = 1.0, b: float = 6.0
    ) -> None:
        super().__init__(temperature=temperature)
        self.a, self.b = a, b

    def __call__(self, queries: Tensor, labels: Tensor, positives: Positives) -> Tensor:
        """Return the scalar loss, float32, or float64 of float64 inputs; NaN where an embedding is not finite."""
        check_pairs(queries, labels, positives)
        if len(queries) == 0 or len(labels) == 0:
            return at_least_float32(queries).sum() * 0 + at_least_float32(labels).sum() * 0
        return self.by_moments(queries, labels, positives, Moments.of(labels))

    def by_moments(self, queries: Tensor, labels: Tensor, positives: Positives, moments: Moments) -> Tensor:
        """Return the same, given the moments of all labels; of `labels` (L, D) the positives' rows alone are read."""
        queries = at_least_float32(queries) / self.temperature
        squares = moments.count * ((queries @ moments.covariance) * queries).sum(dim=1)
        pairs = Pairs.of(positives, self.shares(positives), queries)
        own = at_least_float32(labels[pairs.columns]) - moments.mean
        of_pairs = (queries[pairs.rows] * own).sum(dim=1)
        value: Tensor = _Value.apply(of_pairs, squares, self, pairs, positives, moments.count)  # type: ignore[no-untyped-call]
        return value / max(1, len(queries)) + 0 * squares.sum()  # NaN of a row without positives shows too


def terms(
    loss: ZLoss,
    of_pairs: Tensor,
    pairs: Pairs,
    count: int,
    counts: Tensor,
    squares: Tensor,
    per_row: Callable[[Tensor], Tensor],
) -> Terms:
    """Return the loss of rows whose scores have mean 0 over all `count` labels, and its derivatives, in float64 inside.

    `of_pairs` (nnz) are the positives' scores, `counts` (B) how many there are, `squares` (B) sums of squares over all labels;
    `per_row` sums a value per pair over each row's positives (B).
    """
    d, rows = of_pairs.double(), pairs.rows
    others = per_row(torch.stack([d, d.square()]).T.contiguous())[rows]  # Σ_P s and Σ_P s²
    number = (count - counts.double() + 1)[rows]  # of the negatives, and this positive
    mean = (d - others[:, 0]) / number
    square = (squares.double()[rows] - others[:, 1] + d.square()) / number
    variance = square - mean.square()
    flat = (number <= 1) | (variance <= FLAT**2 * (square + mean.square()))  # comparisons that NaN fails, so that it is seen
    deviation = torch.where(flat, 1.0, variance).sqrt()
    z = torch.where(flat, 0.0, (d - mean) / deviation)
    gaps, shares = loss.a * (loss.b - z), pairs.shares.double()
    value = (shares * softplus(gaps)).sum() / loss.a
    pulls = torch.where(flat, 0.0, -shares * torch.sigmoid(gaps))  # ∂/∂z
    by_sum = pulls * (z * mean / deviation - 1) / (number * deviation)
    by_square = -pulls * z / (2 * number * deviation.square())
    sums = per_row(torch.stack([by_sum, by_square]).T.contiguous())
    # A positive feels its own term alone, and not what its row's other positives do to the negatives.
    own = pulls / deviation + by_sum - sums[rows, 0] + 2 * (by_square - sums[rows, 1]) * d
    return Terms(value.to(of_pairs), sums[:, 0].to(of_pairs), sums[:, 1].to(of_pairs), own.to(of_pairs))


class _Value(torch.autograd.Function):
    """Σ_i Σ_p share_p·L_p of the positives' centred scores (nnz) and the sums of squares (B)."""

    @staticmethod
    def forward(
        ctx: Any, of_pairs: Tensor, squares: Tensor, loss: ZLoss, pairs: Pairs, positives: Positives, count: int
    ) -> Tensor:
        counts = torch.from_numpy(np.diff(positives.indptr)).to(squares.device)

        def per_row(values: Tensor) -> Tensor:
            return values.new_zeros(len(squares), values.shape[1]).index_add_(0, pairs.rows, values)

        found = terms(loss, of_pairs, pairs, count, counts, squares, per_row)
        ctx.save_for_backward(found.of_pairs, found.of_squares)
        return found.value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        of_pairs, of_squares = ctx.saved_tensors
        return of_pairs * scale, of_squares * scale, None, None, None, None
