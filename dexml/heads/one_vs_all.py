"""One linear L2-SVM per label over the same rows, all labels of a block at once: the head of DiSMEC, Parabel and PECOS.

min_w ½‖w − u‖² + C Σ_i c_i max(0, 1 − y_i⟨w, x_i⟩)², y_i = ±1, c_i = w₊ where y_i = 1 and else 1: without the weight, the
few positives of a label may be outvoted by its negatives. u is 0, or what the label's text says: a label of two rows leans on
it, one of hundreds does not (an adaptive SVM: Yang, Yan and Hauptmann, ACM Multimedia 2007). Finite Newton steps with an
inexact line search (Keerthi and DeCoste, JMLR 6, 2005), each by conjugate gradients; as a block shares its rows, all of it is
products of two matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from dexml.heads.base import Head
from dexml.types import Positives

BLOCK_BYTES = 64 << 20  # of a block's scores, of which about six copies live at a time
STEPS = 50  # of Newton's method, at most; ten are the rule
INNER = 30  # of conjugate gradients for one step
FORCING = 0.1  # what a step leaves of the gradient, by its quadratic model
ARMIJO, HALVINGS = 1e-4, 12


class OneVsAll(Head):
    """`cost` is C, `positive_weight` w₊, and u is `text` times the row of the label's text.

    A label is done where its gradient is `tolerance` of that at w = 0.
    """

    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "text": (4.0, 0.0),
        "cost": (0.3, 1.0),
        "positive_weight": (3.0, 1.0),
    }

    def __init__(
        self,
        *,
        cost: Annotated[float, Gt(0)] = 1.0,
        positive_weight: Annotated[float, Gt(0)] = 1.0,
        text: Annotated[float, Ge(0)] = 0.0,
        tolerance: Annotated[float, Gt(0)] = 1e-2,
    ) -> None:
        self.cost, self.positive_weight, self.text, self.tolerance = cost, positive_weight, text, tolerance

    def stages(self, rows: Tensor, positives: Positives, start: Tensor) -> Iterator[Tensor]:
        """Yield the weights once; `start` is what the texts say."""
        yield self.fit(rows, positives, self.text * start if self.text > 0 else None)

    def fit(
        self,
        rows: Tensor,
        positives: Positives,
        centre: Tensor | None = None,
        report: Callable[[int], None] = lambda done: None,
    ) -> Tensor:
        """Return the weights (L, D) of `rows` (N, D), float32 or float64; `centre` (L, D) is u, 0 where it is not given.

        Rows without positives are rows that nobody labelled: they are left out. `report` gets the number of labels done.
        """
        labelled = np.flatnonzero(np.diff(positives.indptr))
        rows, matrix = rows[torch.from_numpy(labelled)], positives.take(labelled).matrix().tocsc()
        weights = rows.new_zeros(positives.num_labels, rows.shape[1])
        step = max(1, BLOCK_BYTES // (rows.element_size() * max(1, len(rows))))
        for first in range(0, positives.num_labels, step):
            some = slice(first, min(first + step, positives.num_labels))
            signs = torch.from_numpy(matrix[:, some].toarray()).gt(0).to(rows).mul_(2).sub_(1)  # (N, block)
            costs = torch.where(signs > 0, self.positive_weight, 1.0).to(rows).mul_(self.cost)
            around = weights[some] if centre is None else centre[some].to(rows)
            weights[some] = _Block(rows, signs, costs, around).solve(self.tolerance)
            report(some.stop)
        return weights

    def objective(self, rows: Tensor, positives: Positives, weights: Tensor, centre: Tensor | None = None) -> Tensor:
        """Return what `fit` minimises, of each label (L), at `weights` (L, D); all rows count."""
        signs = torch.from_numpy(positives.matrix().toarray()).gt(0).to(rows).mul_(2).sub_(1)
        costs = torch.where(signs > 0, self.positive_weight, 1.0).to(rows).mul_(self.cost)
        around = torch.zeros_like(weights) if centre is None else centre
        return _Block(rows, signs, costs, around).objective(weights, rows @ weights.T)


@dataclass(frozen=True, eq=False)
class _Block:
    """Some labels: `rows` (N, D), `signs` ±1 and `costs` C·c (N, B), and the `centre` u (B, D)."""

    rows: Tensor
    signs: Tensor
    costs: Tensor
    centre: Tensor

    def objective(self, weights: Tensor, scores: Tensor) -> Tensor:
        """Return the objective of each label (B) at `weights` (B, D), given their scores (N, B)."""
        return 0.5 * (weights - self.centre).square().sum(dim=1) + (self.costs * self.gaps(scores).square()).sum(dim=0)

    def gaps(self, scores: Tensor) -> Tensor:
        """Return max(0, 1 − y·o) (N, B), exactly 0 beyond the margin."""
        return (1 - self.signs * scores).clamp_(min=0)

    def solve(self, tolerance: float) -> Tensor:
        """Return the weights (B, D); labels that are done leave the block."""
        found = self.centre.clone()
        enough = tolerance * torch.linalg.vector_norm(2 * (self.costs * self.signs).T @ self.rows, dim=1)
        places, block = torch.arange(len(found)), self
        weights, scores = found.clone(), self.rows @ found.T
        for _ in range(STEPS):
            gaps = block.gaps(scores)
            gradient = weights - block.centre - 2 * (block.costs * block.signs * gaps).T @ block.rows
            going = torch.linalg.vector_norm(gradient, dim=1) > enough[places]
            if not going.all():
                found[places] = weights
                block = _Block(self.rows, block.signs[:, going], block.costs[:, going], block.centre[going])
                places = places[going]
                weights, scores, gaps, gradient = weights[going], scores[:, going], gaps[:, going], gradient[going]
            if len(places) == 0:
                break
            step = block.newton(gradient, gaps)
            weights, scores = block.line_search(weights, scores, step, (gradient * step).sum(dim=1))
        found[places] = weights
        return found

    def newton(self, gradient: Tensor, gaps: Tensor) -> Tensor:
        """Return (I + 2 Xᵀ diag(C c 1[gap > 0]) X)⁻¹(−gradient) (B, D), by conjugate gradients for each label."""
        curvature = 2 * self.costs * (gaps > 0)
        step, residual = torch.zeros_like(gradient), -gradient
        direction, square = residual.clone(), residual.square().sum(dim=1)
        enough = FORCING**2 * square
        for _ in range(INNER):
            going = square > enough
            if not going.any():
                break
            bent = direction + (curvature * (self.rows @ direction.T)).T @ self.rows
            length = torch.where(going, square / (direction * bent).sum(dim=1), 0.0)[:, None]
            step += length * direction
            residual -= length * bent
            following = residual.square().sum(dim=1)
            direction = residual + torch.where(going, following / square, 0.0)[:, None] * direction
            square = torch.where(going, following, square)
        return step

    def line_search(self, weights: Tensor, scores: Tensor, step: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and scores after t·step, t the first of 1, ½, ¼, … that lowers the objective as its slope promises."""
        before, along = self.objective(weights, scores), self.rows @ step.T
        t = torch.ones_like(before)
        for _ in range(HALVINGS):
            after = self.objective(weights + t[:, None] * step, scores + t * along)
            short = after > before + ARMIJO * t * slope
            if not short.any():
                break
            t = torch.where(short, t / 2, t)
        return weights + t[:, None] * step, scores + t * along
