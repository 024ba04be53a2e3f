"""CSV: `labels.csv` with the columns id and text, and one `NAME.csv` per split with the columns text and labels."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from data.lines import excerpt, raw_lines
from data.objects import parse
from data.records import Records
from dexml.errors import InputError

_LISTS = ("labels", "excluded")
_FIELD_CHARACTERS = 2**31 - 1  # of one field; the module's own limit is 131,072
_PLAIN = re.compile(r"[^\s\[;][^;]*(?<!\s)")


class CsvTable(Records):
    """`labels.csv` with id and text, `NAME.csv` with text, labels and perhaps excluded; `.csv.gz` is read too.

    The first line names the columns; commas separate, quotes may hold commas and line breaks (RFC 4180). A cell of labels is
    ids or texts separated by semicolons, or a JSON list of them where one starts with "[" or holds a semicolon; an empty cell
    is a row without labels. Spaces around a semicolon are no part of an id. Blank lines are skipped.
    """

    ENDS: ClassVar = (".csv", ".csv.gz")

    def _records(self, path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        rows = self._rows(path)
        where, header = next(rows, (str(path), []))
        for name in fields[:2]:
            if name not in header:
                there = ", ".join(map(excerpt, header[:8])) or "none"
                raise InputError(f"{where}: the column {name!r} is missing (there: {there}); commas separate the columns")
        if doubles := sorted({name for name in header if header.count(name) > 1}):
            raise InputError(f"{where}: the column {excerpt(doubles[0])} stands twice")
        for where, row in rows:
            if len(row) != len(header):
                raise InputError(f"{where}: {len(row)} fields, but the first line names {len(header)} columns")
            yield where, {name: _cell(name, value, where) for name, value in zip(header, row, strict=True) if name in fields}

    def _rows(self, path: Path) -> Iterator[tuple[str, list[str]]]:
        csv.field_size_limit(_FIELD_CHARACTERS)
        reader = csv.reader(raw_lines(path, self.tell), strict=True)
        while True:
            where = f"{path}, line {reader.line_num + 1}"
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(f"{where}: not CSV ({error})") from None
            if row:
                yield where, row

    @classmethod
    def _write_records(cls, path: Path, fields: tuple[str, ...], records: Iterator[dict[str, Any]]) -> None:
        with path.open("w", encoding="utf-8", newline="") as stream:
            # "\r\n" is RFC 4180's, and makes the module quote a lone "\r" as well.
            writer = csv.writer(stream, lineterminator="\r\n")
            writer.writerow(fields)
            writer.writerows(
                [_joined(record[name]) if name in _LISTS else record[name] for name in fields] for record in records
            )


def _cell(name: str, value: str, where: str) -> object:
    if name not in _LISTS:
        return value
    if value.lstrip().startswith("["):
        return parse(value, f"{where}, {name}")
    if not value.strip():
        return []
    ids = [part.strip() for part in value.split(";")]
    if "" in ids:
        raise InputError(f"{where}, {name}: an empty name between semicolons, got {excerpt(value)}")
    return ids


def _joined(ids: list[str]) -> str:
    return ";".join(ids) if all(map(_PLAIN.fullmatch, ids)) else json.dumps(ids, ensure_ascii=False)
