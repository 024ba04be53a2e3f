"""A linear head under Z-loss whose update takes O(d²) for a query, whatever the number of labels (Vincent et al., 2015).

W (L, d) is kept as V·U + 1ωᵀ. A step of stochastic gradient descent on all of W multiplies it by a d×d matrix, adds one
vector to all its rows, and touches the rows of the batch's positives: the first goes into U, the second into ω, the third into
V. Z-loss needs of all outputs only their sum and sum of squares, ⟨w̄, x⟩ and xᵀQx with w̄ = Wᵀ1 and Q = WᵀW, which are kept.
The result is that of plain SGD on W, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from dexml.heads.base import Head
from dexml.losses.base import Pairs
from dexml.losses.z_loss import ZLoss, terms
from dexml.types import Positives

LEAST, MOST = 0.5, 2.0  # singular values of U that are left alone


class FactoredHead:
    """Z-loss over linear outputs o = W·x, by stochastic gradient descent; everything in the number type of `weights`.

    Float64 keeps `Q` and `w̄` true to W for long; they are computed anew by `refresh`.
    """

    def __init__(self, weights: Tensor, loss: ZLoss, *, every: int = 100) -> None:
        """`weights` (L, d) is where W starts; U is looked after `every` so many steps."""
        self.loss, self.every, self.steps = loss, every, 0
        self.v = weights.clone()  # (L, d)
        self.u = torch.eye(weights.shape[1], dtype=weights.dtype, device=weights.device)
        self.inverse = self.u.clone()  # of U
        self.shift = weights.new_zeros(weights.shape[1])  # ω
        self.refresh()

    @property
    def weights(self) -> Tensor:
        """W (L, d); L·d² to compute."""
        return self.v @ self.u + self.shift

    def refresh(self) -> None:
        """Compute Q and w̄ from W, and U⁻¹ from U: L·d², and no rounding left of the steps before."""
        weights = self.weights
        self.squares, self.sums = weights.T @ weights, weights.sum(dim=0)  # Q, w̄
        self.inverse = torch.linalg.inv(self.u)

    def step(self, rows: Tensor, positives: Positives, rate: float) -> tuple[Tensor, Tensor]:
        """Take W ← W − rate·∂(mean loss)/∂W for the queries `rows` (m, d); return the loss before it, and its gradient (m, d)
        by the rows.
        """
        count, batch = len(self.v), max(1, len(rows))
        pairs = Pairs.of(positives, self.loss.shares(positives), rows)
        labels, places = torch.unique(pairs.columns, return_inverse=True)
        touched = self.v[labels] @ self.u + self.shift  # rows of W (K, d)
        spread = rows @ self.squares  # X·Q
        means = rows @ self.sums / count
        squares = (spread * rows).sum(dim=1) - count * means.square()
        of_pairs = (rows[pairs.rows] * touched[places]).sum(dim=1) - means[pairs.rows]
        counts = torch.from_numpy(np.diff(positives.indptr)).to(rows)

        def per_row(values: Tensor) -> Tensor:
            return values.new_zeros(len(rows), values.shape[1]).index_add_(0, pairs.rows, values)

        found = terms(self.loss, of_pairs, pairs, count, counts, squares, per_row)
        # ∂/∂O = bent·O + level·1ᵀ + sparse, O = X·Wᵀ (m, L), with the scores' mean put back
        bent = 2 * found.of_squares / batch
        level = found.of_sums / batch - bent * means
        sparse = rows.new_zeros(len(rows), len(labels))
        sparse[pairs.rows, places] = found.of_pairs / batch
        pulls = sparse @ touched  # (m, d)
        gradient = bent[:, None] * spread + level[:, None] * self.sums + pulls
        self._update(rows, bent * rate, level * rate, sparse * rate, labels, pulls * rate)
        return found.value / batch, gradient

    def _update(self, x: Tensor, bent: Tensor, level: Tensor, sparse: Tensor, labels: Tensor, pulls: Tensor) -> None:
        """Take W ← W·K + 1cᵀ − SᵀX with K = I − Xᵀ·diag(bent)·X, c = −Xᵀ·level and S = `sparse` at the columns `labels`."""
        bent_x = bent[:, None] * x  # (m, d)
        shift, count = -(x.T @ level), len(self.v)  # c
        own = sparse.sum(dim=1)  # S·1 (m)
        # Q' = (WK + 1cᵀ − SᵀX)ᵀ(WK + 1cᵀ − SᵀX), and w̄' = (WK + 1cᵀ − SᵀX)ᵀ1; Wᵀ Sᵀ = pullsᵀ
        sums = self.sums - bent_x.T @ (x @ self.sums)  # K·w̄
        half = self.squares - bent_x.T @ (x @ self.squares)  # K·Q
        whole = half - (half @ x.T) @ bent_x
        kept = pulls - (pulls @ x.T) @ bent_x  # pulls·K
        cross = torch.outer(sums, shift) - kept.T @ x - torch.outer(shift, own @ x)
        both = torch.outer(shift, shift).mul_(count) + x.T @ (sparse @ sparse.T) @ x
        self.squares = whole + cross + cross.T + both
        self.sums = sums + count * shift - own @ x
        self.shift = self.shift - bent_x.T @ (x @ self.shift) + shift
        # U' = U·K and U'⁻¹ = K⁻¹·U⁻¹ by Woodbury's identity, of the rank of the batch
        self.u = self.u - (self.u @ x.T) @ bent_x
        small = torch.eye(len(x), dtype=x.dtype, device=x.device) - bent_x @ x.T
        self.inverse = self.inverse + x.T @ torch.linalg.solve(small, bent_x @ self.inverse)
        self.v[labels] -= sparse.T @ (x @ self.inverse)
        self.steps += 1
        if self.steps % self.every == 0:
            self.stabilise()

    def stabilise(self) -> int:
        """Bring U's singular values back into [½, 2], the factors going into V, L·d for each direction; return how many.

        W stays as it is. Without it U would shrink, and V grow, until their product is made of noise.
        """
        left, values, right = torch.linalg.svd(self.u)
        bounded = values.clamp(LEAST, MOST)
        moved = torch.nonzero(bounded != values)[:, 0]
        if len(moved):
            directions, factors = left[:, moved], (values / bounded)[moved] - 1
            self.v += ((self.v @ directions) * factors) @ directions.T
            self.u = (left * bounded) @ right
        self.inverse = torch.linalg.inv(self.u)
        return len(moved)


class ZHead(Head):
    """`FactoredHead` over `epochs` of batches of `batch` rows, at a constant learning `rate`.

    `a` and `b` are those of the loss: a positive pulls until it stands b standard deviations above the rest.
    """

    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"b": (4.0, 8.0), "rate": (10.0, 30.0)}

    def __init__(
        self,
        *,
        rate: Annotated[float, Gt(0)] = 10.0,
        a: Annotated[float, Gt(0)] = 1.0,
        b: float = 4.0,
        epochs: Annotated[int, Ge(1)] = 20,
        batch: Annotated[int, Ge(1)] = 32,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        self.rate, self.loss = rate, ZLoss(temperature=1.0, a=a, b=b)
        self.epochs, self.batch, self.seed = epochs, batch, seed

    def stages(self, rows: Tensor, positives: Positives, start: Tensor) -> Iterator[Tensor]:
        """Yield the weights after every epoch."""
        head, given = FactoredHead(start.double(), self.loss), rows.double()
        for epoch in range(self.epochs):
            order = np.random.default_rng((self.seed, epoch)).permutation(len(rows))
            for first in range(0, len(order), self.batch):
                some = order[first : first + self.batch]
                head.step(given[torch.from_numpy(some)], positives.take(some), self.rate)
            yield head.weights.float()
