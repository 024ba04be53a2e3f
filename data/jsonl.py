"""JSON Lines: `labels.jsonl` with an id and a text per label, and one `NAME.jsonl` per split."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.format import Format, check_writable
from data.lines import complaint, excerpt, id_complaint, read_lines, staged
from dexml.errors import InputError
from dexml.table import unknown
from dexml.types import LabelTable, Positives, Split

_LABELS = "labels"
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_KNOWN_SHOWN = 20_000  # labels compared with an unknown one for the hint: difflib takes 20 µs each


class JsonLines(Format):
    """`labels.jsonl` of {"id", "text"} and `NAME.jsonl` of {"text", "labels", "excluded"?}; `.jsonl.gz` is read too.

    A label is named by its id, or by its text where no id matches and one label alone has that text. Ids may be written
    as integers; they are strings inside, of 1 to 256 bytes of UTF-8 without control characters. Fields of other names are
    left alone, blank lines are skipped.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._names: _Names | None = None

    @classmethod
    def found(cls, root: Path) -> bool:
        """Return whether the labels or a training split are there, so that a missing one is named when it is read."""
        return any((root / f"{name}.jsonl{end}").is_file() for name in (_LABELS, "train") for end in ("", ".gz"))

    def splits(self) -> tuple[str, ...]:
        """Return the names of all `NAME.jsonl` but the labels: "train" and "test" first, then by name."""
        first = {"train": 0, "test": 1}
        return tuple(sorted(_names_in(self.root) - {_LABELS}, key=lambda name: (first.get(name, 2), name)))

    def labels(self) -> LabelTable:
        """Return the label table, in the file's order."""
        return self._known().table

    def read(self, split: str) -> Split:
        """Return one split; `excluded` is None when no row has that field."""
        names = self._known()
        if split not in self.splits():
            if split in ("train", "test"):
                raise InputError(f"{self.root / split}.jsonl: the file does not exist")
            raise unknown("split", split, list(self.splits()))
        path = _path(self.root, split)
        texts: list[str] = []
        positives, excluded = _Rows(len(names.table)), _Rows(len(names.table))
        any_excluded = False
        for where, row in _objects(path):
            texts.append(_text(row, where))
            positives.append(names.numbers(_field(row, "labels", where), f"{where}, labels"))
            any_excluded |= "excluded" in row
            excluded.append(names.numbers(row.get("excluded", []), f"{where}, excluded"))
        return Split(tuple(texts), positives.build(), excluded.build() if any_excluded else None)

    @classmethod
    def write(cls, root: Path, labels: LabelTable, splits: Mapping[str, Split]) -> None:
        """Write the labels and all splits; an older `.jsonl.gz` of the same name goes.

        Raises InputError for a split name that no file can have, and where `root` holds a split that `splits` lacks.
        """
        for name in splits:
            if name == _LABELS or not _SPLIT_NAME.fullmatch(name):
                raise InputError(f"split {name!r}: letters, digits, '.', '_' and '-' are allowed, and not 'labels'")
        check_writable(labels, splits)
        for name in cls(root).splits() if root.is_dir() else ():
            if name not in splits:
                raise InputError(f"{root}: already holds the split {name!r}, which would not fit the new labels")
        with staged() as sibling:
            rows: Iterator[dict[str, Any]] = (
                {"id": id_, "text": text} for id_, text in zip(labels.ids, labels.texts, strict=True)
            )
            _write_objects(sibling(root / f"{_LABELS}.jsonl"), rows)
            for name, split in splits.items():
                _write_objects(sibling(root / f"{name}.jsonl"), _split_objects(labels, split))
        for name in (_LABELS, *splits):
            (root / f"{name}.jsonl.gz").unlink(missing_ok=True)

    def _known(self) -> _Names:
        if self._names is None:
            path = _path(self.root, _LABELS)
            ids: dict[str, int] = {}
            texts: list[str] = []
            for where, row in _objects(path):
                value = _field(row, "id", where)
                name = _name(value, f"{where}, id")
                if fault := id_complaint(name):
                    raise InputError(f"{where}, id: {fault}")
                if name in ids:
                    raise InputError(f"{where}, id: {excerpt(name)} was given before, as label {ids[name]} (from 0)")
                ids[name] = len(ids)
                texts.append(_text(row, where))
            self._names = _Names(LabelTable(tuple(ids), tuple(texts)), ids)
        return self._names


class _Names:
    """Finds label numbers by id, then by text."""

    def __init__(self, table: LabelTable, ids: dict[str, int]) -> None:
        self.table = table
        self._ids = ids
        self._by_text: dict[str, int] = {}  # -1 where several labels share the text
        for number, text in enumerate(table.texts):
            self._by_text[text] = number if text not in self._by_text else -1

    def numbers(self, names: object, where: str) -> list[int]:
        """Return the label numbers of a JSON list of ids or texts."""
        if not isinstance(names, list):
            raise InputError(f"{where}: a list of label ids is needed, got {excerpt(names)}")
        return [self._number(_name(value, f"{where}[{place}]"), where, place) for place, value in enumerate(names)]

    def _number(self, name: str, where: str, place: int) -> int:
        number = self._ids.get(name)
        if number is None:
            number = self._by_text.get(name)
        if number is None:
            raise InputError(f"{where}[{place}]: unknown label {excerpt(name)}{self._hint(name)}")
        if number < 0:
            raise InputError(f"{where}[{place}]: several labels have the text {excerpt(name)}; use the id")
        return number

    def _hint(self, name: str) -> str:
        alike = (known for table in (self._ids, self._by_text) for known in table if known[:1] == name[:1])
        near = get_close_matches(name, islice(alike, _KNOWN_SHOWN), n=1, cutoff=0.5)
        near = near or get_close_matches(name, islice(self._ids, _KNOWN_SHOWN), n=1, cutoff=0.5)
        return f"; did you mean {excerpt(near[0])}?" if near else f" (labels.jsonl has {len(self._ids)} labels)"


class _Rows:
    """Grows compressed sparse rows without a Python list per row."""

    def __init__(self, num_labels: int) -> None:
        self._num_labels = num_labels
        self._indptr = array("q", [0])
        self._indices = array("q")

    def append(self, numbers: list[int]) -> None:
        self._indices.extend(sorted(set(numbers)))
        self._indptr.append(len(self._indices))

    def build(self) -> Positives:
        return Positives(np.array(self._indptr, dtype=np.int64), np.array(self._indices, dtype=np.int64), self._num_labels)


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
    for where, row in _objects(path):
        if strange := sorted(set(row) - {"id", "text", "embedding"}):
            raise InputError(f"{where}: the field {excerpt(strange[0])} is not known; allowed are id, text and embedding")
        name = _name(_field(row, "id", where), f"{where}, id")
        if fault := id_complaint(name):
            raise InputError(f"{where}, id: {fault}")
        if name in seen:
            raise InputError(f"{where}, id: {excerpt(name)} stands in {seen[name].rpartition(', ')[2]} already")
        seen[name] = where
        embedding = row.get("embedding")
        if embedding is None and "text" not in row:
            raise InputError(f"{where}: a text or an embedding is needed")
        numbers = isinstance(embedding, list) and all(type(number) in (int, float) for number in embedding)
        if embedding is not None and not numbers:
            raise InputError(f"{where}, embedding: a list of numbers is needed, got {excerpt(embedding)}")
        yield LabelLine(where, name, _text(row, where) if "text" in row else None, embedding)


def _names_in(root: Path) -> set[str]:
    found = (re.fullmatch(r"([^.].*)\.jsonl(\.gz)?", path.name) for path in root.iterdir() if path.is_file())
    return {match[1] for match in found if match}


def _path(root: Path, name: str) -> Path:
    """Return `NAME.jsonl` or, where that is not there, `NAME.jsonl.gz`. Raises InputError where both are."""
    plain, zipped = root / f"{name}.jsonl", root / f"{name}.jsonl.gz"
    if plain.is_file() and zipped.is_file():
        raise InputError(f"{plain}: {zipped.name} is there too; keep one of them")
    return zipped if zipped.is_file() else plain


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place ("FILE, line N") and the JSON object of each line."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}, column {error.colno}: not JSON: {error.msg}") from None
        except (ValueError, RecursionError) as error:  # an integer of thousands of digits; brackets nested without end
            raise InputError(f"{where}: not JSON that can be read: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f'{where}: an object like {{"text": …}} is needed, got {excerpt(row)}')
        yield where, row


def _field(row: dict[str, Any], field: str, where: str) -> object:
    if field not in row:
        there = ", ".join(excerpt(name) for name in islice(row, 8)) or "none"
        raise InputError(f"{where}: the field {field!r} is missing (there: {there})")
    return row[field]


def _text(row: dict[str, Any], where: str) -> str:
    text = _field(row, "text", where)
    if not isinstance(text, str):
        raise InputError(f"{where}, text: a string is needed, got {excerpt(text)}")
    if fault := complaint(text):
        raise InputError(f"{where}, text: {fault}")
    return text


def _name(value: object, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{where}: a string or an integer is needed, got {excerpt(value)}")
    return value


def _split_objects(labels: LabelTable, split: Split) -> Iterator[dict[str, Any]]:
    for row, text in enumerate(split.texts):
        made: dict[str, Any] = {"text": text, "labels": [labels.ids[label] for label in split.positives.row(row)]}
        if split.excluded is not None:
            made["excluded"] = [labels.ids[label] for label in split.excluded.row(row)]
        yield made


def _write_objects(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
