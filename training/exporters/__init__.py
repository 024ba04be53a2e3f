"""Where labels can be exported to, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dexml.table import Table

if TYPE_CHECKING:
    from training.exporters.base import Exporter

EXPORTERS: Table[Exporter] = Table(
    "target",
    {
        "qdrant": "training.exporters.qdrant_collection:QdrantCollection",
        "milvus": "training.exporters.milvus_collection:MilvusCollection",
        "pgvector": "training.exporters.postgres_table:PostgresTable",
        "npy": "training.exporters.numpy_folder:NumpyFolder",
        "hub-folder": "training.exporters.hub_folder:HubFolder",
    },
)

__all__ = ["EXPORTERS"]
