"""Towers by name: features -> unit rows. What is trained stands here."""

from __future__ import annotations

from dexml.table import Table
from dexml.towers.base import Tower

TOWERS: Table[Tower] = Table(
    "tower",
    {
        "tokens": "dexml.towers.tokens:TokenTower",
        "summed": "dexml.towers.summed:SummedTower",
        "compact": "dexml.towers.compact:CompactTower",
        "residual": "dexml.towers.residual:ResidualTower",
        "identity": "dexml.towers.identity:IdentityTower",
        "adapted": "dexml.towers.adapted:AdaptedTower",
        "linear": "dexml.towers.linear:LinearTower",
        "mixture": "dexml.towers.mixture:MixtureTower",
        "noprop": "dexml.towers.noprop:NoPropTower",
        "kernel": "dexml.towers.kernel:KernelTower",
    },
)

__all__ = ["TOWERS", "Tower"]
