"""What formats share whose splits are "train" and "test", in files of set names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from data.filters import clear_filters, filter_lines, filter_name
from data.format import Format, check_writable
from data.lines import staged, write_lines
from dexml.errors import InputError
from dexml.table import unknown
from dexml.types import LabelTable, Positives, Split

Place = Callable[[str], Path]
"""Where to write the file of a role."""


class TwoSplits(Format):
    """A format whose files have set names: `FILES` gives each role the names it may have, the first of them when written.

    Roles are "labels", a split's name, and whatever starts with a split's name and "_" where a split has several files.
    """

    FILES: ClassVar[Mapping[str, tuple[str, ...]]]
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "test")

    def splits(self) -> tuple[str, ...]:
        """Return the splits of which any file is there, so that a missing one is named when it is read."""
        return tuple(split for split in self.SPLITS if self.there(self.root, split))

    def _read(self, split: str) -> Split:
        if split not in self.SPLITS:
            raise unknown("split", split, list(self.splits()))
        texts, positives = self._rows(split)
        return Split(texts, positives)

    @abstractmethod
    def _rows(self, split: str) -> tuple[tuple[str, ...], Positives]:
        """Return texts and positives of a split, their counts checked against each other."""

    @abstractmethod
    def _write_labels(self, place: Place, labels: LabelTable) -> None:
        """Write the label table."""

    @abstractmethod
    def _write_split(self, place: Place, name: str, labels: LabelTable, split: Split) -> None:
        """Write one split but for its filter file."""

    @classmethod
    def write(cls, root: Path, labels: LabelTable, splits: Mapping[str, Split]) -> None:
        """Write the splits (any may be absent); files of other names for the same thing go.

        Raises InputError for a split or a text that the format cannot hold, and where `root` holds a split that `splits` lacks.
        """
        for name in splits:
            if name not in cls.SPLITS:
                raise unknown("split", name, list(cls.SPLITS))
        made = cls(root)
        check_writable(made, labels, splits)
        written: list[str] = []
        with staged() as sibling:

            def place(role: str) -> Path:
                written.append(role)
                return sibling(made.root / cls.FILES[role][0])

            made._write_labels(place, labels)
            for name, split in splits.items():
                made._write_split(place, name, labels, split)
                if split.excluded is not None:
                    write_lines(sibling(made.root / filter_name(name)), filter_lines(split.excluded))
        for role in written:
            for other in cls.FILES[role][1:]:
                (made.root / other).unlink(missing_ok=True)
        for name, split in splits.items():
            clear_filters(made.root, name, keep=split.excluded is not None)

    @classmethod
    def there(cls, root: Path, *splits: str) -> list[Path]:
        """Return the files of `splits` ("labels" too) that are there."""
        roles = [role for role in cls.FILES if any(role == split or role.startswith(f"{split}_") for split in splits)]
        return [root / name for role in roles for name in cls.FILES[role] if (root / name).is_file()]

    def path(self, role: str) -> Path:
        """Return the file of a role, by its first name where none is there. Raises InputError where two are there."""
        names = self.FILES[role]
        there = [self.root / name for name in names if (self.root / name).is_file()]
        if len(there) > 1:
            raise InputError(f"{there[0]}: {there[1].relative_to(self.root)} is there too; keep one of them")
        return there[0] if there else self.root / names[0]


__all__ = ["Place", "TwoSplits"]
