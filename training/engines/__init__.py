"""Who runs the blocks of an offline job: this process, or actors on a Ray cluster (docs/adr/0012)."""

from __future__ import annotations

from dexml.table import Table
from training.engines.base import Engine

ENGINES: Table[Engine] = Table(
    "engine", {"local": "training.engines.local:LocalEngine", "ray": "training.engines.actors:RayEngine"}
)

__all__ = ["ENGINES", "Engine"]
