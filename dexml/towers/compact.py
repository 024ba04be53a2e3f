"""The summed tower in fewer dimensions: dense features are projected, and the feature table is as narrow as the rows."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize

from dexml.encoders import Encoder
from dexml.towers.base import Tower
from dexml.towers.summed import SummedTower
from dexml.towers.tokens import bag_of, drop, table_rows, table_rows_of_both
from dexml.types import Features


class CompactTower(Tower):
    """q = norm(norm(P·m + b) + g·norm(F·W)), y = norm(norm(R·m) + g·norm(F·W) + f) for dense m (N, M) and a bag F.

    P and R are (D, M), W is (features, D), D the `dimension`. Alone, it starts from the principal axes of the encoder's own
    rows of word pieces (`start = "distilled"`) or of random ones; as a student, from those of a summed tower's labels.
    """

    reads = frozenset({"bag", "dense"})

    def __init__(
        self,
        encoder: Encoder,
        *,
        dimension: Annotated[int, Ge(1)] = 96,
        dropout: Annotated[float, Ge(0), Le(0.9)] = 0.3,
        dense_dropout: Annotated[float, Ge(0), Le(0.9)] = 0.1,
        start: Literal["distilled", "random"] = "distilled",
        table_rate: Annotated[float, Gt(0)] = 3e-3,
        free_rate: Annotated[float, Gt(0)] = 5e-3,
        matrix_rate: Annotated[float, Gt(0)] = 1e-3,
        scale_rate: Annotated[float, Gt(0)] = 3e-3,
    ) -> None:
        super().__init__()
        self.dimension, self.dropout, self.dense_dropout, self.start = dimension, dropout, dense_dropout, start
        self.rates = {
            "table": table_rate,
            "free": free_rate,
            "of_queries": matrix_rate,
            "of_labels": matrix_rate,
            "bias": matrix_rate,
            "log_scale": scale_rate,
        }
        self.table = nn.Parameter(torch.zeros(encoder.width(), dimension))
        self.of_queries = nn.Parameter(torch.zeros(dimension, encoder.dense_width()))
        self.of_labels = nn.Parameter(torch.zeros(dimension, encoder.dense_width()))
        self.bias = nn.Parameter(torch.zeros(dimension))
        self.log_scale = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def start_from(self, encoder: Encoder) -> None:
        """Set all for a new training: along the principal axes of the encoder's initial rows, or of random ones."""
        width = self.of_labels.shape[1]
        rows = encoder.initial_rows(width) if self.start == "distilled" else None
        if rows is None:
            rows = torch.randn(len(self.table), width) / width**0.5
        axes = principal_axes(rows, self.dimension)
        self.table.copy_(rows @ axes)
        self.of_queries.copy_(axes.T)
        self.of_labels.copy_(axes.T)

    @torch.no_grad()
    def adopt(self, teacher: Tower, axes: Tensor) -> bool:
        """Project a summed tower onto the `axes`; or take over another of the same dimension."""
        if not isinstance(teacher, SummedTower):
            return super().adopt(teacher, axes)
        if len(teacher.table) != len(self.table):
            return False
        self.table.copy_(teacher.table @ axes)
        self.of_queries.copy_(axes.T + axes.T @ teacher.matrix)
        self.of_labels.copy_(axes.T)
        self.bias.copy_(teacher.bias @ axes)
        self.log_scale.copy_(teacher.log_scale)
        return True

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
        return normalize(self._dense(queries, query=True) + scale * query_rows, dim=1), self.freed(of_labels, numbers)

    def rate(self, parameter: str) -> float:
        """Return the learning rate of a parameter."""
        return self.rates[parameter]

    def undecayed(self) -> frozenset[str]:
        """Return the scale, as of the summed tower."""
        return frozenset({"log_scale"})

    def _dense(self, features: Features, *, query: bool) -> Tensor:
        dense = features.dense
        if dense is None:
            raise ValueError("the tower 'compact' needs an encoder that gives dense and sparse features, such as 'joint'")
        if not query:
            return normalize(dense @ self.weight("of_labels").T, dim=1)
        dense = dropout(dense, self.dense_dropout, training=self.training)
        return normalize(dense @ self.weight("of_queries").T + self.bias, dim=1)


def principal_axes(rows: Tensor, count: int) -> Tensor:
    """Return the `count` orthonormal axes (M, count) along which rows (N, M) are longest, the longest first.

    A sign is free, and set so that an axis' largest number is above 0. With more axes than M, those beyond are 0.
    """
    wide = rows.double()
    _, vectors = torch.linalg.eigh(wide.T @ wide)
    best = vectors.flip(1)[:, :count]
    signs = best.gather(0, best.abs().argmax(dim=0, keepdim=True)).sign()
    axes = torch.zeros(rows.shape[1], count)
    axes[:, : best.shape[1]] = (best * signs).float()
    return axes
