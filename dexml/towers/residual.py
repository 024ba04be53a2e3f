"""A residual linear map over frozen dense features: norm(m + A·m + b), merged into one matrix when a model is exported."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize

from dexml.encoders import Encoder
from dexml.towers.base import Tower
from dexml.types import Features


class ResidualTower(Tower):
    """norm(m + A·m + b) for dense features m (N, D); A and b start at 0, so that training starts from the encoder itself."""

    reads = frozenset({"dense"})

    def __init__(
        self,
        encoder: Encoder,
        *,
        dropout: Annotated[float, Ge(0), Le(0.9)] = 0.1,
        rate: Annotated[float, Gt(0)] = 1e-3,
        free_rate: Annotated[float, Gt(0)] = 5e-3,
    ) -> None:
        super().__init__()
        self.dimension = encoder.width()
        self.dropout = dropout
        self.rates = {"matrix": rate, "bias": rate, "free": free_rate}
        self.matrix = nn.Parameter(torch.zeros(self.dimension, self.dimension))
        self.bias = nn.Parameter(torch.zeros(self.dimension))

    def raw(self, features: Features, *, query: bool) -> Tensor:
        """Return norm(m + A·m + b) (N, D), with dropout on m for queries in training."""
        dense = features.dense
        if dense is None:
            raise ValueError("the tower 'residual' needs an encoder that gives dense features, such as 'transformer'")
        if query:
            dense = dropout(dense, self.dropout, training=self.training)
        return normalize(dense + dense @ self.weight("matrix").T + self.bias, dim=1)

    def rate(self, parameter: str) -> float:
        """Return the learning rate of `matrix`, `bias` or `free`."""
        return self.rates[parameter]

    def merged(self) -> tuple[Tensor, Tensor]:
        """Return (I + A, b): the linear layer that this tower is."""
        matrix, bias = self.weight("matrix").detach(), self.bias.detach()
        return torch.eye(self.dimension).to(matrix) + matrix, bias
