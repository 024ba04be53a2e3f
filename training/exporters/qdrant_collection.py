"""A Qdrant collection: a point per label, searched by inner product."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dexml.errors import InputError
from training.exporters.base import Exporter, Source, one_line, one_of

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

BATCH = 256  # points a request: 3 MB of JSON at 768 dimensions, and Qdrant takes 32
TIMEOUT_S = 60
API_KEY = "QDRANT_API_KEY"  # the environment variable: on a command line others would read it
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")  # a folder's name in local mode


def point_id(label: str) -> str:
    """Return the id of a label's point, always the same: `uuid.uuid5(uuid.NAMESPACE_OID, label)`."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, label))


class QdrantCollection(Exporter):
    """A collection with distance Dot on a server, or in a folder in qdrant-client's local mode; payloads are {"id", "text"}.

    What is known of the labels is the collection's metadata. A server's key is read from QDRANT_API_KEY.
    """

    extra: ClassVar[str] = "qdrant"
    needs: ClassVar[tuple[str, ...]] = ("qdrant_client",)

    def __init__(
        self,
        *,
        collection: Annotated[str, Field(description="The collection's name.")],
        url: Annotated[str | None, Field(description="The server, http://HOST:PORT.")] = None,
        path: Annotated[Path | None, Field(description="A local folder or file instead of a server.")] = None,
        replace: Annotated[bool, Field(description="Drop what has that name first.")] = False,
    ) -> None:
        if not _NAME.fullmatch(collection):
            raise InputError(f"--collection: letters, digits, '_', '-' and '.' are allowed, got {collection!r}")
        one_of(url, path)
        self.collection = collection
        self.url = url
        self.path = path
        self.replace = replace

    def export(self, source: Source) -> str:
        """Fill the collection; one that could not be filled whole is dropped."""
        from qdrant_client import models

        with self._opened() as client:
            if client.collection_exists(self.collection):
                if not self.replace:
                    raise InputError(f"qdrant: there is a collection {self.collection!r} already (--replace drops it first)")
                client.delete_collection(self.collection)
            vectors = models.VectorParams(size=source.dimension, distance=models.Distance.DOT)
            client.create_collection(self.collection, vectors_config=vectors, metadata=source.about)
            try:
                for batch in source.batches(BATCH):
                    client.upsert(
                        self.collection,
                        models.Batch(
                            ids=[point_id(label) for label in batch.ids],
                            vectors=batch.rows.tolist(),
                            payloads=[{"id": label, "text": text} for label, text in zip(batch.ids, batch.texts, strict=True)],
                        ),
                        wait=True,
                    )
                count = client.count(self.collection, exact=True).count
                if count != len(source):
                    raise InputError(f"qdrant: {self.collection!r} holds {count} points after {len(source)} were sent")
            except BaseException:
                with suppress(Exception):  # the server may be what went away
                    client.delete_collection(self.collection)
                raise
        return f"{self.url or self.path}: collection {self.collection!r}, {count:,} points"

    @contextmanager
    def _opened(self) -> Iterator[QdrantClient]:
        """Give a client; whatever it cannot do is one line."""
        from qdrant_client import QdrantClient
        from qdrant_client.http.exceptions import ApiException

        where = self.url or self.path
        try:
            if self.url is not None:
                # The check of versions would only warn, of a server that is not there too; the first call tells.
                client = QdrantClient(
                    url=self.url, api_key=os.environ.get(API_KEY), timeout=TIMEOUT_S, check_compatibility=False
                )
            else:
                client = QdrantClient(path=str(self.path))
            try:
                yield client
            finally:
                client.close()
        except InputError:  # a ValueError itself
            raise
        except (ApiException, ValueError, RuntimeError, OSError) as error:  # local mode raises the last three
            raise InputError(f"qdrant: {where}: {one_line(error)}") from None
