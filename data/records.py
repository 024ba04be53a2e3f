"""What formats share that keep a record per label and per row, and name labels by id or text: JSON Lines, CSV, Parquet."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from data.filters import clear_filters
from data.format import Format, check_writable
from data.lines import Tell, excerpt, staged
from data.objects import field, id_of, name_of, text_of, weights_of
from data.rows import Rows
from dexml.errors import InputError
from dexml.table import unknown
from dexml.types import LabelTable, Split

LABELS = "labels"
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_KNOWN_SHOWN = 20_000  # labels compared with an unknown one for the hint: difflib takes 20 µs each


class Records(Format):
    """A file `labels` with "id" and "text" per label, and a file per split with "text", "labels" and perhaps "excluded".

    A label is named by its id, or by its text where no id matches and one label alone has that text. Ids may be written
    as integers; they are strings inside, of 1 to 256 bytes of UTF-8 without control characters. Fields of other names are
    left alone.
    """

    ENDS: ClassVar[tuple[str, ...]]
    """What the files' names end in; the first is written."""
    WEIGHTED: ClassVar[bool] = False
    """Whether a field "weights" beside "labels" makes soft positives of them."""

    def __init__(self, root: Path, tell: Tell | None = None) -> None:
        super().__init__(root, tell)
        self._names: _Names | None = None

    @classmethod
    def found(cls, root: Path) -> bool:
        """Return whether the labels or a training split are there, so that a missing one is named when it is read."""
        return any((root / f"{name}{end}").is_file() for name in (LABELS, "train") for end in cls.ENDS)

    def splits(self) -> tuple[str, ...]:
        """Return the names of all files but the labels': "train" and "test" first, then by name."""
        first = {"train": 0, "test": 1}
        return tuple(sorted(self._names_in() - {LABELS}, key=lambda name: (first.get(name, 2), name)))

    def labels(self) -> LabelTable:
        """Return the label table, in the file's order."""
        return self._known().table

    def texts(self, path: Path) -> Iterator[str]:
        """Yield the field "text" of each record of any file of this format, in its order."""
        for where, row in self._records(path, ("text",)):
            yield text_of(row, where)

    @abstractmethod
    def _records(self, path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the place ("FILE, line N") and the fields of each record; of `fields` those that the file has, at least."""

    @classmethod
    @abstractmethod
    def _write_records(cls, path: Path, fields: tuple[str, ...], records: Iterator[dict[str, Any]]) -> None:
        """Write records of `fields`, which are strings and lists of strings."""

    def _read(self, split: str) -> Split:
        names = self._known()
        if split not in self.splits():
            if split in ("train", "test"):
                raise InputError(f"{self.root / split}{self.ENDS[0]}: the file does not exist")
            raise unknown("split", split, list(self.splits()))
        texts: list[str] = []
        positives, excluded = Rows(len(names.table)), Rows(len(names.table))
        any_excluded = False
        for where, row in self._records(self._path(split), ("text", "labels", "excluded")):
            texts.append(text_of(row, where))
            numbers = names.numbers(field(row, "labels", where), f"{where}, labels")
            positives.append(numbers, weights_of(row, numbers, where) if self.WEIGHTED and "weights" in row else None)
            any_excluded |= "excluded" in row
            excluded.append(names.numbers(row.get("excluded", []), f"{where}, excluded"))
        return Split(tuple(texts), positives.build(), excluded.build() if any_excluded else None)

    @classmethod
    def write(cls, root: Path, labels: LabelTable, splits: Mapping[str, Split]) -> None:
        """Write the labels and all splits; older files of the same names with another ending go, and filter files too.

        Raises InputError for a split name that no file can have, and where `root` holds a split that `splits` lacks.
        """
        for name in splits:
            if name == LABELS or not _SPLIT_NAME.fullmatch(name):
                raise InputError(f"split {name!r}: letters, digits, '.', '_' and '-' are allowed, and not 'labels'")
        check_writable(cls(root), labels, splits)
        with staged() as sibling:
            rows = ({"id": name, "text": text} for name, text in zip(labels.ids, labels.texts, strict=True))
            cls._write_records(sibling(root / f"{LABELS}{cls.ENDS[0]}"), ("id", "text"), rows)
            for name, split in splits.items():
                fields = ("text", "labels") if split.excluded is None else ("text", "labels", "excluded")
                cls._write_records(sibling(root / f"{name}{cls.ENDS[0]}"), fields, _records_of(labels, split))
        for name in (LABELS, *splits):
            for end in cls.ENDS[1:]:
                (root / f"{name}{end}").unlink(missing_ok=True)
        for name in splits:
            clear_filters(root, name, keep=False)

    def _names_in(self) -> set[str]:
        ends = "|".join(map(re.escape, self.ENDS))
        found = (re.fullmatch(rf"([^.].*?)(?:{ends})", path.name) for path in self.root.iterdir() if path.is_file())
        return {match[1] for match in found if match}

    def _path(self, name: str) -> Path:
        """Return the file of this name. Raises InputError where there are two."""
        there = [path for end in self.ENDS if (path := self.root / f"{name}{end}").is_file()]
        if len(there) > 1:
            raise InputError(f"{there[0]}: {there[1].name} is there too; keep one of them")
        return there[0] if there else self.root / f"{name}{self.ENDS[0]}"

    def _known(self) -> _Names:
        if self._names is None:
            path = self._path(LABELS)
            ids: dict[str, int] = {}
            texts: list[str] = []
            for where, row in self._records(path, ("id", "text")):
                name = id_of(row, "id", where)
                if name in ids:
                    raise InputError(f"{where}, id: {excerpt(name)} was given before, as label {ids[name]} (from 0)")
                ids[name] = len(ids)
                texts.append(text_of(row, where))
            self._names = _Names(LabelTable(tuple(ids), tuple(texts)), ids, path.name)
        return self._names


class _Names:
    """Finds label numbers by id, then by text."""

    def __init__(self, table: LabelTable, ids: dict[str, int], file: str) -> None:
        self.table = table
        self._ids = ids
        self._file = file
        self._by_text: dict[str, int] = {}  # -1 where several labels share the text
        for number, text in enumerate(table.texts):
            self._by_text[text] = number if text not in self._by_text else -1

    def numbers(self, names: object, where: str) -> list[int]:
        """Return the label numbers of a list of ids or texts."""
        if not isinstance(names, list):
            raise InputError(f"{where}: a list of label ids is needed, got {excerpt(names)}")
        return [self._number(name_of(value, f"{where}[{place}]"), where, place) for place, value in enumerate(names)]

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
        return f"; did you mean {excerpt(near[0])}?" if near else f" ({self._file} has {len(self._ids)} labels)"


def _records_of(labels: LabelTable, split: Split) -> Iterator[dict[str, Any]]:
    def ids(numbers: Sequence[int]) -> list[str]:
        return [labels.ids[number] for number in numbers]

    for row, text in enumerate(split.texts):
        made: dict[str, Any] = {"text": text, "labels": ids(split.positives.row(row).tolist())}
        if split.excluded is not None:
            made["excluded"] = ids(split.excluded.row(row).tolist())
        yield made


__all__ = ["LABELS", "Records"]
