"""Encoders by name: texts -> features. What is trained stands in the towers, and in an encoder that is fine-tuned."""

from __future__ import annotations

from dexml.encoders.base import Encoder, Network
from dexml.table import Table

ENCODERS: Table[Encoder] = Table(
    "encoder",
    {
        "bag": "dexml.encoders.bag:BagEncoder",
        "joint": "dexml.encoders.joint:JointEncoder",
        "transformer": "dexml.encoders.transformer:TransformerEncoder",
    },
)

__all__ = ["ENCODERS", "Encoder", "Network"]
