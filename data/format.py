"""What a file format is: a folder that holds a label table and named splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from data.filters import filter_path, read_filter
from data.lines import Tell, complaint, id_complaint
from dexml.errors import InputError
from dexml.types import LabelTable, Split


class Format(ABC):
    """Reads and writes one data set in the folder `root`; complaints are InputErrors with file, line and value.

    `tell` hears how far a file is while it is read. A filter file beside the others is read whatever the format.
    """

    def __init__(self, root: Path, tell: Tell | None = None) -> None:
        self.root = root
        self.tell = tell

    @classmethod
    @abstractmethod
    def found(cls, root: Path) -> bool:
        """Return whether `root` looks like this format; used by `format = "auto"`."""

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits that are there: "train", "test", and others where the format allows them."""

    @abstractmethod
    def labels(self) -> LabelTable:
        """Return the label table."""

    def read(self, split: str) -> Split:
        """Return one split, its row counts and label numbers checked against each other and the label table.

        `excluded` holds the pairs of the split's filter file, or of its own rows; it is None where there are none of both.
        """
        read = self._read(split)
        path = filter_path(self.root, split)
        if path is None:
            return read
        if read.excluded is not None:
            raise InputError(f"{path}: the rows of {split!r} say what is excluded already; keep one of both")
        return replace(read, excluded=read_filter(path, len(read), read.positives.num_labels))

    @abstractmethod
    def _read(self, split: str) -> Split:
        """Return one split without its filter file."""

    @classmethod
    @abstractmethod
    def write(cls, root: Path, labels: LabelTable, splits: Mapping[str, Split]) -> None:
        """Write a data set into the folder `root`; reading it back gives equal tables and splits.

        Raises InputError for what the format cannot hold, and where `root` holds a split that `splits` lacks.
        """


def check_writable(made: Format, labels: LabelTable, splits: Mapping[str, Split]) -> None:
    """Raise InputError unless every id and text can be read back, every split counts its labels as the table does, and the
    folder of `made` holds no other split, which would be left with labels that are not its own.

    Weights of positives have no place in these formats: they raise ValueError rather than vanish.
    """
    for what, texts in (("labels", labels.texts), *((name, split.texts) for name, split in splits.items())):
        for row, text in enumerate(texts):
            if fault := complaint(text):
                raise InputError(f"{what}, row {row}: {fault}")
    for row, name in enumerate(labels.ids):
        if fault := id_complaint(name):
            raise InputError(f"labels, row {row}: {fault}")
    for name, split in splits.items():
        if split.positives.num_labels != len(labels):
            raise InputError(f"{name}: positives over {split.positives.num_labels} labels, the table has {len(labels)}")
        if split.positives.weights is not None:
            raise ValueError(f"{name}: the format keeps no weights of positives")
    for name in made.splits() if made.root.is_dir() else ():
        if name not in splits:
            raise InputError(f"{made.root}: already holds the split {name!r}, which would not fit the new labels")


__all__ = ["Format", "check_writable"]
