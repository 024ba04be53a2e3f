"""What an index can answer at all, and how little it takes to change an answer: QuadAttacK's programme against label rows."""

from __future__ import annotations

from index.audit.fragility import Boundary, boundaries
from index.audit.programme import Certificate
from index.audit.push import MARGIN, Push, pushes

__all__ = ["MARGIN", "Boundary", "Certificate", "Push", "boundaries", "pushes"]
