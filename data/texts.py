"""The texts of one file of any size, one after the other and without their labels: what is embedded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.csv_table import CsvTable
from data.jsonl import JsonLines
from data.lines import Tell, complaint, read_lines
from data.parquet_table import ParquetTable
from dexml.errors import InputError

PLAIN = (".txt", ".txt.gz")
TABLES = (JsonLines, CsvTable, ParquetTable)


def stream_texts(path: Path, tell: Tell | None = None) -> Iterator[str]:
    """Yield the texts of `path`: the lines of a .txt, or the field "text" of a .jsonl (either may end in .gz too), .csv or
    .parquet. `tell` hears how far the file is.

    Raises InputError, before the first text, for a name that ends otherwise; and for a text that is none, with its line.
    """
    for table in TABLES:
        if path.name.endswith(table.ENDS):
            return table(path.parent, tell).texts(path)
    if path.name.endswith(PLAIN):
        return _lines(path, tell)
    ends = ", ".join((*PLAIN, *(end for table in TABLES for end in table.ENDS)))
    raise InputError(f"{path}: the name must end in one of {ends}, which says how the texts are written")


def _lines(path: Path, tell: Tell | None) -> Iterator[str]:
    for number, text in enumerate(read_lines(path, tell), 1):
        if fault := complaint(text):
            raise InputError(f"{path}, line {number}: {fault}")
        yield text
