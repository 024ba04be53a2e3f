"""Encoders by name: texts -> features. What is trained stands in the towers; an encoder is fitted once and then fixed."""

from __future__ import annotations

from dexml.encoders.base import Encoder
from dexml.table import Table

ENCODERS: Table[Encoder] = Table(
    "encoder",
    {
        "bag": "dexml.encoders.bag:BagEncoder",
        "joint": "dexml.encoders.joint:JointEncoder",
        "transformer": "dexml.encoders.transformer:TransformerEncoder",
    },
)

__all__ = ["ENCODERS", "Encoder"]
