"""JSON Lines: `labels.jsonl` with an id and a text per label, and one `NAME.jsonl` per split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from data.lines import excerpt, write_lines
from data.objects import id_of, read_objects, text_of
from data.records import Records
from dexml.errors import InputError


class JsonLines(Records):
    """`labels.jsonl` of {"id", "text"} and `NAME.jsonl` of {"text", "labels", "excluded"?}; `.jsonl.gz` is read too.

    Blank lines are skipped.
    """

    ENDS: ClassVar = (".jsonl", ".jsonl.gz")

    def _records(self, path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        return read_objects(path, self.tell)

    @classmethod
    def _write_records(cls, path: Path, fields: tuple[str, ...], records: Iterator[dict[str, Any]]) -> None:
        write_lines(path, (json.dumps(record, ensure_ascii=False) for record in records))


class LabelLine(NamedTuple):
    """A label as a line of a file tells it: `where` for messages, its `id`, `text`, and perhaps an `embedding` (D)."""

    where: str
    id: str
    text: str | None
    embedding: list[float] | None


def read_label_lines(path: Path) -> Iterator[LabelLine]:
    """Yield the labels of a JSON Lines file: {"id", "text"}, {"id", "embedding"}, or all three.

    Raises InputError that names file, line and field for anything else, a field that nobody knows among it.
    """
    seen: dict[str, str] = {}
    for where, row in read_objects(path):
        if strange := sorted(set(row) - {"id", "text", "embedding"}):
            raise InputError(f"{where}: the field {excerpt(strange[0])} is not known; allowed are id, text and embedding")
        name = id_of(row, "id", where)
        if name in seen:
            raise InputError(f"{where}, id: {excerpt(name)} stands in {seen[name].rpartition(', ')[2]} already")
        seen[name] = where
        embedding = row.get("embedding")
        if embedding is None and "text" not in row:
            raise InputError(f"{where}: a text or an embedding is needed")
        numbers = isinstance(embedding, list) and all(type(number) in (int, float) for number in embedding)
        if embedding is not None and not numbers:
            raise InputError(f"{where}, embedding: a list of numbers is needed, got {excerpt(embedding)}")
        yield LabelLine(where, name, text_of(row, where) if "text" in row else None, embedding)
