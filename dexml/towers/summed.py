"""A transformer's frozen features and a trained feature table, summed: the tower of recipe C (METHODS §3)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize

from dexml.encoders import Encoder
from dexml.towers.base import Tower
from dexml.towers.tokens import bag_of, drop, start_table, table_rows, table_rows_of_both
from dexml.types import Features


class SummedTower(Tower):
    """q = norm(norm(m + A·m + b) + g·norm(F·W)), y = norm(m + g·norm(F·W) + f) for dense m (N, D) and a bag F.

    A, b and f start at 0 and g at 1 (kept as its logarithm). Labels have no A and b of their own: they bring nothing there.
    """

    reads = frozenset({"bag", "dense"})

    def __init__(
        self,
        encoder: Encoder,
        *,
        dropout: Annotated[float, Ge(0), Le(0.9)] = 0.3,
        dense_dropout: Annotated[float, Ge(0), Le(0.9)] = 0.1,
        start: Literal["distilled", "random"] = "distilled",
        table_rate: Annotated[float, Gt(0)] = 3e-3,
        free_rate: Annotated[float, Gt(0)] = 5e-3,
        residual_rate: Annotated[float, Gt(0)] = 1e-3,
        scale_rate: Annotated[float, Gt(0)] = 3e-3,
    ) -> None:
        super().__init__()
        self.dimension = encoder.dense_width()
        self.dropout, self.dense_dropout, self.start = dropout, dense_dropout, start
        self.rates = {
            "table": table_rate,
            "free": free_rate,
            "matrix": residual_rate,
            "bias": residual_rate,
            "log_scale": scale_rate,
        }
        self.table = nn.Parameter(torch.zeros(encoder.width(), self.dimension))
        self.matrix = nn.Parameter(torch.zeros(self.dimension, self.dimension))
        self.bias = nn.Parameter(torch.zeros(self.dimension))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def start_from(self, encoder: Encoder) -> None:
        """Fill W for a new training."""
        start_table(self.table, encoder, self.start)

    def raw(self, features: Features, *, query: bool) -> Tensor:
        """Return the sum (N, D) before it is normalised."""
        bag = bag_of(features)
        rows = table_rows(self.weight("table"), drop(bag, self.dropout) if query and self.training else bag)
        return self._dense(features, query=query) + self.log_scale.exp() * rows

    def forward(self, queries: Features, labels: Features, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return unit rows of both sides, the table's from one product."""
        bag = bag_of(queries)
        dropped = drop(bag, self.dropout) if self.training else bag
        query_rows, label_rows = table_rows_of_both(self.weight("table"), dropped, bag_of(labels))
        scale = self.log_scale.exp()
        of_labels = self._dense(labels, query=False) + scale * label_rows
        return (
            normalize(self._dense(queries, query=True) + scale * query_rows, dim=1),
            self.freed(of_labels, numbers),
        )

    def rate(self, parameter: str) -> float:
        """Return the learning rate of a parameter."""
        return self.rates[parameter]

    def undecayed(self) -> frozenset[str]:
        """Return the scale: decay would pull g to 1, whatever the data say."""
        return frozenset({"log_scale"})

    def _dense(self, features: Features, *, query: bool) -> Tensor:
        dense = features.dense
        if dense is None:
            raise ValueError("the tower 'summed' needs an encoder that gives dense and sparse features, such as 'joint'")
        if not query:
            return dense
        dense = dropout(dense, self.dense_dropout, training=self.training)
        return normalize(dense + dense @ self.weight("matrix").T + self.bias, dim=1)
