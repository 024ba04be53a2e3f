"""How long a search may take, and what it may leave out. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False)
class Patience:
    """A search must end at `until`, and may, where `partial`, leave out shards that do not answer; those are `missing` then."""

    until: float | None = None  # monotonic seconds
    partial: bool = False
    missing: set[int] = field(default_factory=set)


__all__ = ["Patience"]
