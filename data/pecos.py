"""PECOS' text files: "0,1,2<TAB>text" or "0::0.5,1::1<TAB>text" a row, and a label's text a line in `output-items.txt`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from data.lines import complaint, excerpt, one_line, read_lines, write_lines
from data.numbered_labels import NumberedLabels
from data.rows import Rows
from data.sparse_lines import weighed
from data.two_splits import Place
from dexml.errors import InputError
from dexml.types import LabelTable, Positives, Split


class Pecos(NumberedLabels):
    """`train.txt` and `test.txt` of "label,label<TAB>text" and `output-items.txt`, the label texts; labels count from 0.

    "label::relevance" is read too: a label of relevance 0 is no positive. No tab before the text means no row; a text may
    hold tabs. Nothing counts the rows, so that a line break in a text is told only by a line that has no labels and tab.
    """

    FILES: ClassVar = {
        "labels": ("output-items.txt", "output-labels.txt"),
        "train": ("train.txt", "training-data.txt"),
        "test": ("test.txt", "test-data.txt"),
    }

    @classmethod
    def found(cls, root: Path) -> bool:
        """Return whether the label texts are there, beside anything but a matrix (that is `xmc_text` by other names)."""
        return bool(cls.there(root, "labels")) and not any(root.glob("Y.*.npz"))

    def _rows(self, split: str) -> tuple[tuple[str, ...], Positives]:
        path, num_labels = self.path(split), len(self.labels())
        texts: list[str] = []
        rows = Rows(num_labels)
        for number, line in enumerate(read_lines(path, self.tell), 1):
            where = f"{path}, line {number}"
            labels, tab, text = line.partition("\t")
            if not tab:
                raise InputError(f"{where}: labels, a tab and a text are needed, got {excerpt(line)}")
            rows.append(weighed(labels, num_labels, "label", where))
            if fault := complaint(text):
                raise InputError(f"{where}: {fault}")
            texts.append(text)
        return tuple(texts), rows.build()

    def _write_split(self, place: Place, name: str, labels: LabelTable, split: Split) -> None:
        rows = (",".join(map(str, split.positives.row(row).tolist())) for row in range(len(split)))
        texts = one_line(name, split.texts)
        write_lines(place(name), (f"{row}\t{text}" for row, text in zip(rows, texts, strict=True)))
