"""A residual linear map behind the queries of a tower that stays as it is: what is tuned against labels that stand still."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn.functional import dropout

from dexml.encoders import Encoder
from dexml.towers.base import Tower
from dexml.types import Features


class AdaptedTower(Tower):
    """Queries norm(x + A·x + b) of the unit rows x of the tower `base`, labels as the base has them; A and b start at 0."""

    reads = frozenset()  # whatever its base reads

    def __init__(
        self,
        encoder: Encoder,
        *,
        base: str = "identity",
        base_options: dict[str, Any] | None = None,
        dropout: Annotated[float, Ge(0), Le(0.9)] = 0.1,
        rate: Annotated[float, Gt(0)] = 1e-3,
        free_rate: Annotated[float, Gt(0)] = 5e-3,
    ) -> None:
        from dexml.towers import TOWERS  # where this tower is a row itself

        super().__init__()
        self.base = TOWERS.build(base, base_options or {}, encoder).requires_grad_(False)
        self.dimension = self.base.dimension
        self.dropout = dropout
        self.rates = {"matrix": rate, "bias": rate, "free": free_rate}
        self.matrix = nn.Parameter(torch.zeros(self.dimension, self.dimension))
        self.bias = nn.Parameter(torch.zeros(self.dimension))

    def train(self, mode: bool = True) -> AdaptedTower:
        """Train nothing of the base."""
        super().train(mode)
        self.base.eval()
        return self

    def raw(self, features: Features, *, query: bool) -> Tensor:
        """Return x + A·x + b (N, D), with dropout on x in training, or the base's row of a label."""
        if not query:
            return self.base.labels(features, trained=False)
        rows = dropout(self.base.queries(features), self.dropout, training=self.training)
        # b is scaled by ‖x‖, which is 1, or 0 for a text without a known word: such a row stays 0.
        return rows + rows @ self.matrix.T + self.bias * rows.any(dim=1, keepdim=True)

    def rate(self, parameter: str) -> float:
        """Return the learning rate of `matrix`, `bias` or `free`."""
        return self.rates[parameter]
