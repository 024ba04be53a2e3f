"""NoProp behind the queries of another tower: noise is denoised to the embedding of a query's labels (`dexml.heads.noprop`).

x = √D·base(query) and u = SIGNAL·√D·norm(Σ of the rows of a query's positives). An answer starts from one draw of N(0, I),
which is the same for every query, and goes along the mean: no text's row depends on another's.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import dropout

from dexml.encoders import Encoder
from dexml.errors import InputError
from dexml.heads.noprop import Blocks, centroids
from dexml.towers.base import Tower
from dexml.types import Features, Positives

SIGNAL = 0.3  # chosen on validation rows: at 1 the blocks believe z more than x, and their errors add up


class NoPropTower(Tower):
    """Queries are z_T of `blocks` blocks of `hidden` units behind the tower `base`; labels are the base's.

    Base and label vectors train by the config's loss on the base's own queries, and each block by its own (`local_losses`).
    """

    reads = frozenset()  # whatever its base reads
    local = True
    noise: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        base: str = "identity",
        base_options: dict[str, Any] | None = None,
        blocks: Annotated[int, Ge(1), Le(1000)] = 10,
        hidden: Annotated[int, Ge(1)] = 256,
        dropout: Annotated[float, Ge(0), Le(0.9)] = 0.1,
        rate: Annotated[float, Gt(0)] = 3e-3,
        free_rate: Annotated[float, Gt(0)] = 2e-3,  # labels that learn slowly leave the blocks time
    ) -> None:
        from dexml.towers import TOWERS  # where this tower is a row itself

        super().__init__()
        if not TOWERS[base].reads <= encoder.gives:
            raise InputError(f"tower.base: {base!r} cannot read what this encoder gives, {' and '.join(sorted(encoder.gives))}")
        self.base = TOWERS.build(base, base_options or {}, encoder)
        self.dimension = self.base.dimension
        self.scale = self.dimension**0.5
        self.dropout, self.block_rate, self.free_rate = dropout, rate, free_rate
        self.blocks = Blocks(blocks, self.dimension, self.dimension, hidden, SIGNAL)
        self.register_buffer("noise", torch.randn(self.dimension, generator=torch.Generator().manual_seed(0)))

    def start_from(self, encoder: Encoder) -> None:
        """Set the base, and blocks whose first guess is nearly the base's row."""
        self.base.start_from(encoder)
        self.blocks.start()

    def raw(self, features: Features, *, query: bool) -> Tensor:
        """Return z_T (N, D) at about length 1, or the base's row of a label."""
        return self.denoised(features) if query else self.base.raw(features, query=False)

    def denoised(self, features: Features, blocks: int | None = None) -> Tensor:
        """Return z (N, D) of queries after the first `blocks`, or all; a text without a known word stays 0."""
        rows = self.base.queries(features)
        found = self.blocks.denoise(self.scale * rows, self.noise, blocks=blocks) / (SIGNAL * self.scale)
        known: Tensor = found * rows.any(dim=1, keepdim=True)
        return known

    def local_losses(self, rows: Tensor, labels: Tensor, positives: Positives) -> Tensor:
        """Return each block's loss (T) on the base's query rows (N, D), with labels (L, D); rows without a label are left out.

        Neither gets a gradient.
        """
        with torch.no_grad():
            labelled = np.flatnonzero(np.diff(positives.indptr))
            targets = SIGNAL * self.scale * centroids(labels, positives.take(labelled))
            rows = rows[torch.from_numpy(labelled).to(rows.device)]
        return self.blocks.losses(self.scale * dropout(rows, self.dropout, training=self.training), targets)

    def rate(self, parameter: str) -> float:
        """Return the learning rate of a parameter, the base's as the base has it."""
        if parameter.startswith("base."):
            return self.base.rate(parameter.removeprefix("base."))
        return self.free_rate if parameter == "free" else self.block_rate

    def undecayed(self) -> frozenset[str]:
        """Return the base's scales."""
        return frozenset(f"base.{name}" for name in self.base.undecayed())
