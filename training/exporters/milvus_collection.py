"""A Milvus collection: an entity per label, searched by inner product."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dexml.errors import InputError
from dexml.text import ID_BYTES
from training.exporters.base import Exporter, Source, one_line, one_of

if TYPE_CHECKING:
    from pymilvus import MilvusClient

BATCH = 512
TEXT_BYTES = 65_535  # of UTF-8 in a VARCHAR
WIDEST = 32_768  # dimensions of a FLOAT_VECTOR
TIMEOUT_S = 60
TOKEN = "MILVUS_TOKEN"  # the environment variable: on a command line others would read it
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


class MilvusCollection(Exporter):
    """Fields id (the key), text and embedding with metric IP, on a server or in milvus-lite's file (`--path labels.db`).

    What is known of the labels is the collection's description, as JSON. A server's token is read from MILVUS_TOKEN.
    """

    extra: ClassVar[str] = "milvus"
    needs: ClassVar[tuple[str, ...]] = ("pymilvus",)

    def __init__(
        self,
        *,
        collection: Annotated[str, Field(description="The collection's name.")],
        url: Annotated[str | None, Field(description="The server, http://HOST:PORT.")] = None,
        path: Annotated[Path | None, Field(description="A local folder or file instead of a server.")] = None,
        replace: Annotated[bool, Field(description="Drop what has that name first.")] = False,
    ) -> None:
        if not _NAME.fullmatch(collection):
            raise InputError(f"--collection: letters, digits and '_' are allowed, no digit first, got {collection!r}")
        one_of(url, path)
        if path is not None and path.suffix != ".db":
            raise InputError(f"--path: milvus-lite needs a name that ends in .db, got {path}")
        self.collection = collection
        self.url = url
        self.path = path
        self.replace = replace

    def export(self, source: Source) -> str:
        """Fill the collection; one that could not be filled whole is dropped."""
        _check(source)
        with self._opened() as client:
            if client.has_collection(self.collection):
                if not self.replace:
                    raise InputError(f"milvus: there is a collection {self.collection!r} already (--replace drops it first)")
                client.drop_collection(self.collection)
            self._create(client, source)
            try:
                for batch in source.batches(BATCH):
                    columns = zip(batch.ids, batch.texts, batch.rows, strict=True)
                    entities = [{"id": label, "text": text, "embedding": row} for label, text, row in columns]
                    client.insert(self.collection, entities)
                client.flush(self.collection)
                count = int(client.get_collection_stats(self.collection)["row_count"])
                if count != len(source):
                    raise InputError(f"milvus: {self.collection!r} holds {count} labels after {len(source)} were sent")
            except BaseException:
                with suppress(Exception):  # the server may be what went away
                    client.drop_collection(self.collection)
                raise
        return f"{self.url or self.path}: collection {self.collection!r}, {count:,} entities"

    def _create(self, client: MilvusClient, source: Source) -> None:
        from pymilvus import DataType

        about = json.dumps(source.about, ensure_ascii=False)
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=about)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=ID_BYTES)
        schema.add_field("text", DataType.VARCHAR, max_length=TEXT_BYTES)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=source.dimension)
        index = client.prepare_index_params()
        index.add_index("embedding", index_type="AUTOINDEX", metric_type="IP")
        client.create_collection(self.collection, schema=schema, index_params=index)

    @contextmanager
    def _opened(self) -> Iterator[MilvusClient]:
        """Give a client; whatever it cannot do is one line."""
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException

        where = self.url or str(self.path)
        try:
            client = MilvusClient(uri=where, token=os.environ.get(TOKEN, ""), timeout=TIMEOUT_S)
            try:
                yield client
            finally:
                client.close()
        except InputError:  # a ValueError itself
            raise
        except (MilvusException, OSError, RuntimeError, ValueError) as error:
            raise InputError(f"milvus: {where}: {one_line(error)}") from None


def _check(source: Source) -> None:
    """Raise InputError where the collection could not hold the labels."""
    if source.dimension > WIDEST:
        raise InputError(f"milvus: rows of at most {WIDEST:,} dimensions are possible, the bundle's have {source.dimension:,}")
    labels = source.live.labels
    for row in source.numbers.tolist():
        if (size := len(labels.texts[row].encode())) > TEXT_BYTES:
            raise InputError(f"milvus: the text of {labels.ids[row]!r} has {size:,} bytes; {TEXT_BYTES:,} are possible")
