"""Linear outputs ⟨w_l, x⟩ + b_l of another tower's rows x as products of unit rows, so that a head is served as any index is.

With x' = [x, 1]/√2 and a label's weights v = [w, b], ⟨v, x'⟩ = M·⟨[v, √(M² − ‖v‖²)]/M, [x', 0]⟩ for any M ≥ ‖v‖: rows of length
one on both sides, and the order of the outputs (Bachrach et al., RecSys 2014).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dexml.encoders import Encoder
from dexml.towers.base import Tower
from dexml.types import Features


class LinearTower(Tower):
    """Queries [x, 1, 0]/√2 of the unit rows x of the tower `base`; a row of zeros stays one.

    A label that no head was fitted for is [slope·y, offset, …] by the row y of its text, as `dexml head` fits both.
    """

    reads = frozenset()  # whatever its base reads
    slope: Tensor
    offset: Tensor

    def __init__(self, encoder: Encoder, *, base: str = "identity", base_options: dict[str, Any] | None = None) -> None:
        from dexml.towers import TOWERS  # where this tower is a row itself

        super().__init__()
        self.base = TOWERS.build(base, base_options or {}, encoder).requires_grad_(False)
        self.dimension = self.base.dimension + 2
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def train(self, mode: bool = True) -> LinearTower:
        """Train nothing of the base."""
        super().train(mode)
        self.base.eval()
        return self

    def raw(self, features: Features, *, query: bool) -> Tensor:
        """Return [x, 1, 0]/√2 or [slope·y, offset, √(1 − slope² − offset²)] (N, D + 2)."""
        if query:
            rows = with_one(self.base.queries(features))
            return torch.cat([rows, rows.new_zeros(len(rows), 1)], dim=1)
        rows = self.base.labels(features, trained=False)
        rest = torch.stack([self.offset, (1 - self.slope.square() - self.offset.square()).clamp(min=0).sqrt()])
        return torch.cat([self.slope * rows, rest.expand(len(rows), 2)], dim=1)

    def rate(self, parameter: str) -> float:
        """Return a rate for `free`: nothing else is trained by gradient."""
        return 5e-3


def with_one(rows: Tensor) -> Tensor:
    """Return x' = [x, 1]/√2 (N, D + 1), the rows that a head is fitted on, of unit rows x (N, D); of a row of zeros zeros."""
    return normalize(torch.cat([rows, rows.any(dim=1, keepdim=True).to(rows)], dim=1), dim=1)


def as_unit_rows(weights: Tensor, least: float = 0.0) -> tuple[Tensor, float]:
    """Return rows (L, D + 2) of length one for `weights` v (L, D + 1), and M = max ‖v‖, or `least` where that is more."""
    squares = weights.square().sum(dim=1)
    most = max(least, float(squares.max().sqrt()))
    rest = (most**2 - squares).clamp(min=0).sqrt()
    return normalize(torch.cat([weights, rest[:, None]], dim=1), dim=1), most
