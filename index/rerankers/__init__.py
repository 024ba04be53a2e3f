"""Rerankers by name: candidates -> answers."""

from __future__ import annotations

from dexml.table import Table
from index.rerankers.base import Reranker

RERANKERS: Table[Reranker] = Table(
    "reranker",
    {
        "softmax": "index.rerankers.softmax:SoftmaxReranker",
        "identity": "index.rerankers.identity:IdentityReranker",
    },
)

__all__ = ["RERANKERS", "Reranker"]
