"""Parquet: `labels.parquet` with the columns id and text, and one `NAME.parquet` per split with text and a list of labels."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from data.lines import excerpt
from data.records import Records
from dexml.errors import InputError

_ROWS = 4096  # turned into Python objects at once


class ParquetTable(Records):
    """`labels.parquet` with id and text, `NAME.parquet` with text, labels (a list) and perhaps excluded; needs pyarrow."""

    ENDS: ClassVar = (".parquet",)

    def _records(self, path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        number = 0
        for batch in self._batches(path, fields):
            for record in batch:
                yield f"{path}, row {number} (from 0)", record
                number += 1

    def _batches(self, path: Path, fields: tuple[str, ...]) -> Iterator[list[dict[str, Any]]]:
        check()
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                there = file.schema_arrow.names
                for name in fields[:2]:
                    if there.count(name) != 1:
                        problem = "is missing" if name not in there else "stands twice"
                        shown = ", ".join(map(excerpt, there[:8])) or "none"
                        raise InputError(f"{path}: the column {name!r} {problem} (there: {shown})")
                total, done = file.metadata.num_rows, 0
                for batch in file.iter_batches(_ROWS, columns=[name for name in fields if name in there]):
                    yield batch.to_pylist()
                    done += batch.num_rows
                    if self.tell is not None:
                        self.tell(path, done / max(total, 1))
        except InputError:
            raise
        except FileNotFoundError:
            raise InputError(f"{path}: the file does not exist") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: a string is not UTF-8 ({error.reason})") from None
        except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: not Parquet that can be read ({excerpt(reason, 120)})") from None

    @classmethod
    def _write_records(cls, path: Path, fields: tuple[str, ...], records: Iterator[dict[str, Any]]) -> None:
        check()
        import pyarrow as pa
        import pyarrow.parquet as pq

        lists = ("labels", "excluded")
        schema = pa.schema([(name, pa.list_(pa.string()) if name in lists else pa.string()) for name in fields])
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            while batch := list(islice(records, _ROWS)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


def check() -> None:
    """Raise InputError when pyarrow is missing."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError("parquet: pyarrow is missing; pip install 'dexml[parquet]'")
