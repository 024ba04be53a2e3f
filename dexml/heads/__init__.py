"""Free-label heads by name: a vector for each label that no text makes, fitted over rows that stand still.

`dexml.heads.equiangular` has vectors that are fixed before training instead.
"""

from __future__ import annotations

from dexml.heads.base import Head
from dexml.table import Table

HEADS: Table[Head] = Table(
    "head",
    {
        "squared_hinge": "dexml.heads.one_vs_all:OneVsAll",
        "z_loss": "dexml.heads.factored:ZHead",
        "ridge": "dexml.heads.ridge:Ridge",
    },
)

__all__ = ["HEADS", "Head"]
