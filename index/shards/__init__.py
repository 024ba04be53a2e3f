"""Labels spread over shards: exact answers from parts that need not share a machine (docs/sharding.md, docs/adr/0011)."""

from __future__ import annotations

from index.shards.base import Engine, ShardsMissing, TooLate

__all__ = ["Engine", "ShardsMissing", "TooLate"]
