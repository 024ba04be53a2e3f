"""Label indexes by name: embeddings -> candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dexml.table import Table

if TYPE_CHECKING:
    from index.base import LabelIndex

INDEXES: Table[LabelIndex] = Table(
    "index",
    {
        "faiss": "index.faiss_index:FaissIndex",
        "exact": "index.exact:ExactIndex",
    },
)

__all__ = ["INDEXES"]
