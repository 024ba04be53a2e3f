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

    reads = frozenset({"bag"})

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
        start_table(self.table, encoder, self.start)

    @torch.no_grad()
    def adopt(self, teacher: Tower, axes: Tensor) -> bool:
        """Project another table of the same features onto the `axes`."""
        if not isinstance(teacher, TokenTower) or len(teacher.table) != len(self.table):
            return False
        self.table.copy_(teacher.table @ axes)
        return True

    def raw(self, features: Features, *, query: bool) -> Tensor:
        """Return norm(F·W) (N, D); a text without a known feature gives a row of zeros."""
        rows = bag_of(features)
        return table_rows(self.weight("table"), drop(rows, self.dropout) if query and self.training else rows)

    def forward(self, queries: Features, labels: Features, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return unit rows of both sides from one product, so that W gets one dense gradient and not two to be added."""
        dropped = drop(bag_of(queries), self.dropout) if self.training else bag_of(queries)
        query_rows, label_rows = table_rows_of_both(self.weight("table"), dropped, bag_of(labels))
        return query_rows, self.freed(label_rows, numbers) if self.free is not None or self.bits is not None else label_rows

    def rate(self, parameter: str) -> float:
        """Return the learning rate of `table` or `free`."""
        return self.rates[parameter]


def start_table(table: Tensor, encoder: Encoder, start: str) -> None:
    """Fill a feature table (features, D) from the encoder's initial rows ("distilled") or at random."""
    rows = encoder.initial_rows(table.shape[1]) if start == "distilled" else None
    with torch.no_grad():
        if rows is None:
            table.normal_(std=table.shape[1] ** -0.5)
        else:
            table.copy_(rows)


def bag_of(features: Features) -> Bag:
    """Return the sparse part. Raises ValueError where there is none."""
    if features.bag is None:
        raise ValueError("this tower needs an encoder that gives sparse features, such as 'bag'")
    return features.bag


def table_rows(table: Tensor, bag: Bag) -> Tensor:
    """Return norm(F·W) (N, D) for a bag F and a table W; an empty row stays 0."""
    rows = embedding_bag(bag.features, table, bag.offsets, mode="sum", per_sample_weights=bag.weights, include_last_offset=True)
    return normalize(rows, dim=1)


def table_rows_of_both(table: Tensor, queries: Bag, labels: Bag) -> tuple[Tensor, Tensor]:
    """Return `table_rows` of both sides from one product, so that W gets one dense gradient and not two to be added."""
    both = Bag(
        torch.cat([queries.offsets[:-1], labels.offsets + len(queries.features)]),
        torch.cat([queries.features, labels.features]),
        torch.cat([queries.weights, labels.weights]),
    )
    rows = table_rows(table, both)
    return rows[: len(queries)], rows[len(queries) :]


def drop(bag: Bag, probability: float) -> Bag:
    """Return the bag with each feature's weight set to 0 with `probability`, the rest not rescaled."""
    if probability == 0:
        return bag
    kept = torch.rand(len(bag.weights), device=bag.weights.device) >= probability
    return Bag(bag.offsets, bag.features, bag.weights * kept)
