"""AttentionXML's text files: a text a line in `train_texts.txt`, its labels' names in the same line of `train_labels.txt`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

from data.lines import one_line, read_lines, write_lines
from data.named_labels import LABELS, NamedLabels
from data.two_splits import Place
from dexml.errors import InputError
from dexml.types import LabelTable, Split


class AttentionXml(NamedLabels):
    """`train_texts.txt` (or `train_raw_texts.txt`) and `train_labels.txt`, the same for test; names are separated by spaces.

    A blank line of labels is a row without labels. The labels are those of `labels.txt` ("name" or "name<TAB>text" a line)
    where it is there, else the names that occur.
    """

    FILES: ClassVar = {
        "labels": LABELS,
        "train": ("train_labels.txt",),
        "train_texts": ("train_texts.txt", "train_raw_texts.txt"),
        "test": ("test_labels.txt",),
        "test_texts": ("test_texts.txt", "test_raw_texts.txt"),
    }

    @classmethod
    def found(cls, root: Path) -> bool:
        """Return whether texts or labels of a split are there, so that a missing one is named when it is read."""
        return bool(cls.there(root, *cls.SPLITS))

    def _lines(self, split: str) -> Iterator[tuple[str, str, str]]:
        path, texts_path = self.path(split), self.path(f"{split}_texts")
        names, texts = read_lines(path, self.tell), read_lines(texts_path)
        for number, (line, text) in enumerate(zip_longest(names, texts), 1):
            if line is None or text is None:
                ended, other = (path, texts_path) if line is None else (texts_path, path)
                raise InputError(f"{ended}: {number - 1} lines, but {other.name} has more; each line is a row")
            yield f"{texts_path}, line {number}", line, text

    def _write_split(self, place: Place, name: str, labels: LabelTable, split: Split) -> None:
        write_lines(place(f"{name}_texts"), one_line(name, split.texts))
        write_lines(place(name), self._names(labels, split))
