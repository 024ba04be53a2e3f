"""LibMultiLabel's text files: "[id<TAB>]names separated by spaces<TAB>text" a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from data.lines import excerpt, one_line, read_lines, write_lines
from data.named_labels import LABELS, NamedLabels
from data.numbered_labels import first_line
from data.two_splits import Place
from dexml.errors import InputError
from dexml.types import LabelTable, Split


class LibMultiLabel(NamedLabels):
    """`train.txt`, `valid.txt` and `test.txt` of "names<TAB>text" or "id<TAB>names<TAB>text", the same in all of a file.

    The labels are those of `labels.txt` ("name" or "name<TAB>text" a line) where it is there, else the names that occur. A
    text holds no tab, and an id of a row is not kept.
    """

    FILES: ClassVar = {"labels": LABELS, "train": ("train.txt",), "test": ("test.txt",), "valid": ("valid.txt",)}
    SPLITS = ("train", "test", "valid")

    @classmethod
    def found(cls, root: Path) -> bool:
        """Return whether `train.txt` or `test.txt` starts with one or two tabs in a line, and is not PECOS'."""
        tabs = any(first_line(root / f"{split}.txt").count("\t") in (1, 2) for split in ("train", "test"))
        return tabs and not any((root / name).is_file() for name in ("output-items.txt", "output-labels.txt"))

    def _lines(self, split: str) -> Iterator[tuple[str, str, str]]:
        path, tabs = self.path(split), 0
        for number, line in enumerate(read_lines(path, self.tell), 1):
            where, there = f"{path}, line {number}", line.count("\t")
            if there not in (1, 2):
                raise InputError(
                    f"{where}: names, a tab and a text are needed, with an id before it or not, got {excerpt(line)}"
                )
            if tabs not in (0, there):
                raise InputError(f"{where}: {there + 1} fields, but the lines before have {tabs + 1}; a text holds no tab")
            tabs = there
            names, text = line.split("\t")[-2:]
            yield where, names, text

    def _write_split(self, place: Place, name: str, labels: LabelTable, split: Split) -> None:
        texts = one_line(name, split.texts, "\n\t")
        write_lines(place(name), (f"{row}\t{text}" for row, text in zip(self._names(labels, split), texts, strict=True)))
