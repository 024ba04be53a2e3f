"""The encoder's own rows, normalised: a zero-shot model, or one whose training lies in its free label vectors alone."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from torch import Tensor
from torch.nn.functional import normalize

from dexml.encoders import Encoder
from dexml.towers.base import Tower
from dexml.types import Features


class IdentityTower(Tower):
    """norm(m) for dense features m (N, D)."""

    reads = frozenset({"dense"})

    def __init__(self, encoder: Encoder, *, free_rate: Annotated[float, Gt(0)] = 5e-3) -> None:
        super().__init__()
        self.dimension = encoder.width()
        self.free_rate = free_rate

    def raw(self, features: Features, *, query: bool) -> Tensor:
        """Return norm(m) (N, D)."""
        if features.dense is None:
            raise ValueError("the tower 'identity' needs an encoder that gives dense features, such as 'transformer'")
        return normalize(features.dense, dim=1)

    def merged(self) -> None:
        """Return None: there is no layer to merge."""
        return None

    def rate(self, parameter: str) -> float:
        """Return the learning rate of `free`."""
        return self.free_rate
