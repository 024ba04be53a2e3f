"""What a file format is: a folder that holds a label table and named splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from data.lines import complaint, id_complaint
from dexml.errors import InputError
from dexml.types import LabelTable, Split


class Format(ABC):
    """Reads and writes one data set in the folder `root`; complaints are InputErrors with file, line and value."""

    def __init__(self, root: Path) -> None:
        self.root = root

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

    @abstractmethod
    def read(self, split: str) -> Split:
        """Return one split, its row counts and label numbers checked against each other and the label table."""

    @classmethod
    @abstractmethod
    def write(cls, root: Path, labels: LabelTable, splits: Mapping[str, Split]) -> None:
        """Write a data set into the folder `root`; reading it back gives equal tables and splits."""


def check_writable(labels: LabelTable, splits: Mapping[str, Split]) -> None:
    """Raise InputError unless every id and text can be read back and every split counts its labels as the table does.

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


__all__ = ["Format", "check_writable"]
