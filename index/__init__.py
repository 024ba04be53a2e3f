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


def default_index() -> str:
    """Return "faiss" for a GPU, "exact" where this CPU scans integer copies or no FAISS is installed, else "faiss".

    From measurements: docs/adr/0006.
    """
    from dexml.device import faiss_wheel
    from dexml.kernels.instructions import has_int16_products

    wheel = faiss_wheel()
    if wheel is None or (wheel == "faiss-cpu" and has_int16_products()):
        return "exact"
    return "faiss"
