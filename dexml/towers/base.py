"""What a tower is: the trained map from features to unit rows, for queries and for labels, and free label vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dexml.encoders import Encoder
from dexml.quantization import rounded
from dexml.types import Features


class Tower(nn.Module, ABC):
    """Features -> unit rows (N, D) by `raw`, the only method of a new tower.

    A label is norm(raw + f_l): f_l is a free vector of that label, starting at 0, and absent for labels that come later.
    """

    dimension: int
    reads: ClassVar[frozenset[str]]
    """The parts of `Features` that it needs: "bag", "dense" or both."""
    local: ClassVar[bool] = False
    """Whether parts of it are trained by losses of their own (`training.local`), and not by the gradient of `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.free: nn.Parameter | None = None
        self.bits: int | None = None
        """Of the numbers of the weight matrices and of label rows, where these are rounded (`dexml.quantization`)."""

    @abstractmethod
    def raw(self, features: Features, *, query: bool) -> Tensor:
        """Return rows (N, D) of length about 1, before any free vector; `query` tells the sides apart.

        While the tower trains, this is the place for dropout on the query side.
        """

    def free_vectors(self, labels: int) -> None:
        """Give each of `labels` training labels a free vector."""
        self.free = nn.Parameter(torch.zeros(labels, self.dimension))

    def weight(self, name: str) -> Tensor:
        """Return a weight matrix as it is used: rounded to `bits`, where they are set."""
        matrix: Tensor = getattr(self, name)
        return rounded(matrix, self.bits)

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU where there are none."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def queries(self, features: Features) -> Tensor:
        """Return unit rows (N, D) for queries."""
        return normalize(self.raw(features, query=True), dim=1)

    def labels(self, features: Features, *, trained: bool) -> Tensor:
        """Return unit rows (N, D) for labels: all training labels in order (`trained`), or labels without a free vector."""
        rows = self.raw(features, query=False)
        return self.freed(rows) if trained else normalize(rounded(rows, self.bits), dim=1)

    def freed(self, rows: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Return norm(rows + f) (N, D) with the free vectors of the training labels `numbers` int64 (N); of all by default."""
        if self.free is not None:
            rows = rows + (self.free if numbers is None else self.free[numbers])
        return normalize(rounded(rows, self.bits), dim=1)

    def forward(self, queries: Features, labels: Features, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return unit rows of a batch of queries (B, D) and of the training labels `numbers` (L, D); of all by default."""
        return self.queries(queries), self.freed(self.raw(labels, query=False), numbers)

    def start_from(self, encoder: Encoder) -> None:
        """Set the parameters for a new training; nothing by default."""

    @torch.no_grad()
    def adopt(self, teacher: Tower, axes: Tensor) -> bool:
        """Set the parameters so that rows are about the teacher's times `axes` (D of the teacher, D), where that can be.

        Return whether it can. By default a tower of the same kind and sizes is taken over, where the axes are its own. Free
        vectors are left alone.
        """
        own, theirs = (dict(tower.named_parameters()) for tower in (self, teacher))
        names = own.keys() - {"free"}
        alike = type(self) is type(teacher) and all(own[name].shape == theirs[name].shape for name in names)
        if not alike or not torch.equal(axes, torch.eye(self.dimension)):
            return False
        for name in names:
            own[name].copy_(theirs[name])
        return True

    @abstractmethod
    def rate(self, parameter: str) -> float:
        """Return the learning rate of one parameter."""

    def undecayed(self) -> frozenset[str]:
        """Return the parameters that weight decay must leave alone (scales)."""
        return frozenset()

    def notes(self) -> tuple[str, ...]:
        """Return lines that a user should read about the parameters as they are; the training says them, and `dexml info`."""
        return ()
