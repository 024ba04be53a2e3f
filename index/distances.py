"""How many rows a search of a FAISS structure compares a query with: what it costs, whatever else the machine is doing."""

from __future__ import annotations

from collections.abc import Callable

from dexml.device import import_faiss
from index.faiss_index import FaissIndex


def distances(index: FaissIndex, search: Callable[[], int]) -> int:
    """Return the distances that FAISS computes while `search` asks `index` and returns how many queries that were.

    FAISS counts for the process: no other search may run. A query of inverted lists is compared with all centroids too, unless
    a graph finds them. A structure that FAISS does not count for, such as "SQ8", reads all rows.
    """
    faiss = import_faiss()
    of_lists, of_graphs = faiss.cvar.indexIVF_stats, faiss.cvar.hnsw_stats
    of_lists.reset()
    of_graphs.reset()
    queries = search()
    lists = faiss.try_extract_index_ivf(index.structure)
    if lists is not None:
        flat = isinstance(faiss.downcast_index(lists.quantizer), faiss.IndexFlat)
        return int(of_lists.ndis + of_graphs.ndis + (queries * lists.nlist if flat else 0))
    return int(of_graphs.ndis if "HNSW" in index.factory else queries * index.structure.ntotal)


__all__ = ["distances"]
