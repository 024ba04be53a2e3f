"""A non-linear scorer of queries and labels that is searched as any: random features behind both sides of another tower."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.functional import normalize

from dexml.encoders import Encoder
from dexml.kernel_features import Function, KernelFeatures
from dexml.towers.base import Tower
from dexml.types import Features

BIAS = {"relu": 0.0, "cos": -1.0, "sin": 0.0}  # b of cos(⟨w, x⟩ + b), so that of unit rows the same two score highest


class KernelTower(Tower):
    """Queries Φ(x) and labels norm(Ψ(w)) + f of the unit rows x and w of the tower `base`, which trains along.

    `function` of ⟨w, x⟩ is approximated by `features` random directions, drawn by `seed` and saved with the model
    (`dexml.kernel_features`). Alone it keeps the order of cosines; free vectors f, in the space of the features, do not.
    """

    reads = frozenset()  # whatever its base reads

    def __init__(
        self,
        encoder: Encoder,
        *,
        base: str = "residual",
        base_options: dict[str, Any] | None = None,
        function: Function = "relu",
        features: Annotated[int, Ge(1)] = 1024,
        seed: Annotated[int, Ge(0)] = 0,
        free_rate: Annotated[float, Gt(0)] = 5e-3,
    ) -> None:
        from dexml.towers import TOWERS  # where this tower is a row itself

        super().__init__()
        self.base = TOWERS.build(base, base_options or {}, encoder)
        self.features = KernelFeatures(self.base.dimension, features, function, seed)
        self.dimension = self.features.dimension
        self.free_rate = free_rate

    def start_from(self, encoder: Encoder) -> None:
        """Start the base."""
        self.base.start_from(encoder)

    def raw(self, features: Features, *, query: bool) -> Tensor:
        """Return norm(Φ(x)) or norm(Ψ(w)) (N, dimension); a text without a known word keeps a row of zeros as a query."""
        if query:
            rows = self.base.queries(features)
            # Multiplied, not chosen: a graph for ONNX has no branch on what it reads.
            return normalize(self.features.of_inputs(rows), dim=1) * rows.detach().ne(0).any(dim=1, keepdim=True)
        return self.of_labels(self.base.labels(features, trained=False))

    def of_labels(self, rows: Tensor) -> Tensor:
        """Return norm(Ψ(w)) (N, dimension) of unit rows w (N, D) that the base gave labels."""
        return normalize(self.features.of_weights(rows, BIAS[self.features.function]), dim=1)

    def rate(self, parameter: str) -> float:
        """Return the rate of `free`, or that which the base gives its own parameter."""
        return self.free_rate if parameter == "free" else self.base.rate(parameter.removeprefix("base."))

    def undecayed(self) -> frozenset[str]:
        """Return what the base does not want decayed."""
        return frozenset(f"base.{name}" for name in self.base.undecayed())

    @torch.no_grad()
    def adopt(self, teacher: Tower, axes: Tensor) -> bool:
        """Take over a kernel tower of the same features alone."""
        if not isinstance(teacher, KernelTower) or not _same(self.features, teacher.features):
            return False
        return super().adopt(teacher, axes)


def _same(own: KernelFeatures, other: KernelFeatures) -> bool:
    return own.function == other.function and torch.equal(own.directions, other.directions)
