"""Optimizers by name, as `[optimizer]` of a training config picks them."""

from __future__ import annotations

from dexml.table import Table
from training.optimizers.base import Optimization

OPTIMIZERS: Table[Optimization] = Table(
    "optimizer",
    {
        "adamw": "training.optimizers.adamw:AdamW",
        "orthograd": "training.optimizers.orthograd:OrthoGradAdamW",
    },
)

__all__ = ["OPTIMIZERS", "Optimization"]
