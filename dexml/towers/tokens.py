"""Rows of a trained feature table, summed: norm(F·W), the tower of recipe S (METHODS §3)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, normalize

from dexml.encoders import Encoder
from dexml.towers.base import Tower
from dexml.types import Bag, Features


class TokenTower(Tower):
    """norm(F·W) with W (features, D) shared by queries and labels.

    W starts from the encoder's `initial_rows` (`start = "distilled"`) or from small random numbers. While training, each
    feature of a query is dropped with probability `dropout`, without rescaling: the row is normalised anyway.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        dimension: Annotated[int, Ge(1)] = 384,
        dropout: Annotated[float, Ge(0), Le(0.9)] = 0.3,
        start: Literal["distilled", "random"] = "distilled",
        table_rate: Annotated[float, Gt(0)] = 3e-3,
        free_rate: Annotated[float, Gt(0)] = 5e-3,
    ) -> None:
        super().__init__()
        self.dimension = dimension
        self.dropout = dropout
        self.start = start
        self.rates = {"table": table_rate, "free": free_rate}
        self.table = nn.Parameter(torch.zeros(encoder.width(), dimension))

    def start_from(self, encoder: Encoder) -> None:
        """Fill W for a new training."""
        rows = encoder.initial_rows(self.dimension) if self.start == "distilled" else None
        with torch.no_grad():
            if rows is None:
                self.table.normal_(std=self.dimension**-0.5)
            else:
                self.table.copy_(rows)

    def raw(self, features: Features) -> Tensor:
        """Return norm(F·W) (N, D); a text without a known feature gives a row of zeros."""
        return normalize(self._sum(_bag(features)), dim=1)

    def forward(self, queries: Features, labels: Features) -> tuple[Tensor, Tensor]:
        """Return unit rows of both sides from one product, so that W gets one dense gradient and not two to be added."""
        dropped, rest = self._drop(_bag(queries)), _bag(labels)
        both = Bag(
            torch.cat([dropped.offsets[:-1], rest.offsets + len(dropped.features)]),
            torch.cat([dropped.features, rest.features]),
            torch.cat([dropped.weights, rest.weights]),
        )
        rows = normalize(self._sum(both), dim=1)
        query_rows, label_rows = rows[: len(queries)], rows[len(queries) :]
        return query_rows, label_rows if self.free is None else normalize(label_rows + self.free, dim=1)

    def rate(self, parameter: str) -> float:
        """Return the learning rate of `table` or `free`."""
        return self.rates[parameter]

    def _sum(self, bag: Bag) -> Tensor:
        return embedding_bag(
            bag.features, self.table, bag.offsets, mode="sum", per_sample_weights=bag.weights, include_last_offset=True
        )

    def _drop(self, bag: Bag) -> Bag:
        if not self.training or self.dropout == 0:
            return bag
        kept = torch.rand(len(bag.weights), device=bag.weights.device) >= self.dropout
        return Bag(bag.offsets, bag.features, bag.weights * kept)


def _bag(features: Features) -> Bag:
    if features.bag is None:
        raise ValueError("the tower 'tokens' needs an encoder that gives sparse features, such as 'bag'")
    return features.bag
