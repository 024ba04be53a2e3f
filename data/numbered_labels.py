"""What formats share whose labels are numbers, a label's text a line of a file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from data.lines import Tell, one_line, read_lines, read_texts, write_lines
from data.sparse_lines import header
from data.two_splits import Place, TwoSplits
from dexml.errors import InputError
from dexml.types import LabelTable, Positives, Split


class NumberedLabels(TwoSplits):
    """A format without ids: a label's id is its line in the file of label texts, counted from 0."""

    def __init__(self, root: Path, tell: Tell | None = None) -> None:
        super().__init__(root, tell)
        self._labels: LabelTable | None = None

    def labels(self) -> LabelTable:
        """Return the label table; the ids are the row numbers as strings."""
        if self._labels is None:
            texts = read_texts(self.path("labels"), self.tell)
            self._labels = LabelTable(tuple(map(str, range(len(texts)))), texts)
        return self._labels

    def _write_labels(self, place: Place, labels: LabelTable) -> None:
        write_lines(place("labels"), one_line("labels", labels.texts))

    def _check_labels(self, where: str, count: int) -> None:
        """Raise InputError unless a matrix of `count` columns fits the label texts."""
        if count != len(self.labels()):
            there = self.path("labels").relative_to(self.root)
            raise InputError(f"{where}: {count} columns, but {there} has {len(self.labels())} lines, one per label")

    def _texts(self, split: str, rows: int) -> tuple[str, ...]:
        """Return the texts of a split in a file of their own, as many as its matrix has rows."""
        path = self.path(f"{split}_texts")
        texts = read_texts(path, self.tell)
        if len(texts) != rows:
            raise InputError(f"{path}: {len(texts)} lines, but {self.path(split).name} has {rows} rows; each line is a row")
        return texts


class SparseText(NumberedLabels):
    """A sparse matrix as text, rows and columns counted in its first line, beside raw texts by any of their usual names."""

    TEXTS: ClassVar = {
        "labels": ("raw/Y.txt", "Y.txt", "raw_data/label.raw.txt"),
        "train_texts": ("raw/trn_X.txt", "trn_X.txt", "raw_data/train.raw.txt"),
        "test_texts": ("raw/tst_X.txt", "tst_X.txt", "raw_data/test.raw.txt"),
    }

    def splits(self) -> tuple[str, ...]:
        """Return the splits whose matrix is there."""
        return tuple(split for split in self.SPLITS if self.path(split).is_file())

    @abstractmethod
    def _matrix(self, path: Path) -> Positives:
        """Return the positives in `path`."""

    def _rows(self, split: str) -> tuple[tuple[str, ...], Positives]:
        positives = self._matrix(self.path(split))
        return self._texts(split, len(positives)), positives

    def _write_split(self, place: Place, name: str, labels: LabelTable, split: Split) -> None:
        write_lines(place(f"{name}_texts"), one_line(name, split.texts))
        write_lines(place(name), self._matrix_lines(split.positives))

    @staticmethod
    @abstractmethod
    def _matrix_lines(positives: Positives) -> Iterator[str]:
        """Yield the lines of a matrix, its header first."""


def check_count(path: Path, told: int, rows: int) -> None:
    """Raise InputError unless a file has as many rows as its header tells."""
    if rows != told:
        follow = f"{rows} follow" if rows < told else "more follow"
        raise InputError(f"{path}: the header tells of {told} rows, {follow}; a blank line is a row")


def first_line(path: Path) -> str:
    """Return the first line of a file, "" where there is none that can be read; used to tell formats from each other."""
    try:
        return next(read_lines(path), "") if path.is_file() else ""
    except InputError:
        return ""


def read_header(path: Path, count: int, names: str) -> list[int]:
    """Return the numbers in the first line of a file."""
    return header(next(read_lines(path), None), count, names, f"{path}, line 1")


__all__ = ["NumberedLabels", "SparseText", "check_count", "first_line", "read_header"]
