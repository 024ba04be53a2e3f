"""What a file format is: a folder that holds a label table and named splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from dexml.types import LabelTable, Split


class Format(ABC):
    """Reads and writes one data set in the folder `root`. Every complaint is an InputError with file, line and value."""

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
