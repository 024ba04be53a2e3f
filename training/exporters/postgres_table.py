"""A PostgreSQL table with pgvector's type: a row per label."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from dexml.errors import InputError
from training.exporters.base import Exporter, Source, one_line

if TYPE_CHECKING:
    from psycopg import Connection

BATCH = 1024
WIDEST = 16_000  # dimensions of pgvector's type
CONNECT_S = 10
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class PostgresTable(Exporter):
    """Columns id text (the key), text text and embedding vector(D), in one transaction: the table is there whole or not at all.

    What is known of the labels is the table's comment, as JSON. `ORDER BY embedding <#> query` searches it.
    """

    extra: ClassVar[str] = "pgvector"
    needs: ClassVar[tuple[str, ...]] = ("psycopg", "pgvector")

    def __init__(
        self,
        *,
        dsn: Annotated[str, Field(description="The database: postgresql://… or key=value pairs; PGPASSWORD is read.")],
        table: Annotated[str, Field(description="The table's name: a-z, 0-9 and _.")],
        replace: Annotated[bool, Field(description="Drop what has that name first.")] = False,
    ) -> None:
        # Capitals would have to be quoted in every query ever after.
        if not _NAME.fullmatch(table):
            raise InputError(f"--table: a-z, 0-9 and '_' are allowed, no digit first, at most 63 characters, got {table!r}")
        self.dsn = dsn
        self.table = table
        self.replace = replace

    def export(self, source: Source) -> str:
        """Fill the table by COPY."""
        import psycopg

        if source.dimension > WIDEST:
            raise InputError(
                f"pgvector: rows of at most {WIDEST:,} dimensions are possible, the bundle's have {source.dimension:,}"
            )
        try:
            timeout = {} if "connect_timeout" in self.dsn else {"connect_timeout": CONNECT_S}
            with psycopg.connect(self.dsn, **timeout) as connection:
                self._fill(connection, source)
                where = f"{connection.info.host or 'localhost'}/{connection.info.dbname}"
        except (psycopg.Error, UnicodeError) as error:
            raise InputError(f"pgvector: {one_line(error)}") from None
        return f"{where}: table {self.table}, {len(source):,} rows"

    def _fill(self, connection: Connection[Any], source: Source) -> None:
        """Make the table within the connection's transaction, which its end commits."""
        from pgvector.psycopg import register_vector
        from psycopg import sql

        table = sql.Identifier(self.table)
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(connection)
        there = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [f'"{self.table}"']).fetchone()
        if there and there[0]:
            if not self.replace:
                raise InputError(f"pgvector: there is a table {self.table!r} already (--replace drops it first)")
            connection.execute(sql.SQL("DROP TABLE {}").format(table))
        columns = sql.SQL("CREATE TABLE {} (id text PRIMARY KEY, text text NOT NULL, embedding vector({}) NOT NULL)")
        connection.execute(columns.format(table, sql.Literal(source.dimension)))
        about = sql.SQL("COMMENT ON TABLE {} IS {}")
        connection.execute(about.format(table, sql.Literal(json.dumps(source.about, ensure_ascii=False))))
        into = sql.SQL("COPY {} (id, text, embedding) FROM STDIN WITH (FORMAT BINARY)").format(table)
        with connection.cursor() as cursor, cursor.copy(into) as copy:
            copy.set_types(["text", "text", "vector"])
            for batch in source.batches(BATCH):
                for row in zip(batch.ids, batch.texts, batch.rows, strict=True):
                    copy.write_row(row)
