"""Training losses by name; METHODS §1 and docs/architecture.md say what each one is."""

from __future__ import annotations

from dexml.losses.base import Loss
from dexml.table import Table

LOSSES: Table[Loss] = Table(
    "loss",
    {
        "decoupled_softmax": "dexml.losses.decoupled_softmax:DecoupledSoftmax",
        "soft_topk": "dexml.losses.soft_topk:SoftTopK",
        "softmax": "dexml.losses.softmax:Softmax",
        "bce": "dexml.losses.bce:BinaryCrossEntropy",
        "squared_hinge": "dexml.losses.squared_hinge:SquaredHinge",
        "z_loss": "dexml.losses.z_loss:ZLoss",
        "stablemax": "dexml.losses.stablemax:StableMax",
    },
)

__all__ = ["LOSSES", "Loss"]
