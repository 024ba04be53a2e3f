"""What LibMultiLabel's and AttentionXML's formats share: labels that are names without spaces, and often nothing else."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

from data.filters import filter_path
from data.lines import Tell, complaint, excerpt, id_complaint, one_line, read_lines, write_lines
from data.rows import Rows
from data.two_splits import Place, TwoSplits
from dexml.errors import InputError
from dexml.types import LabelTable, Positives, Split

_FILE = "labels.txt"


class NamedLabels(TwoSplits):
    """A format whose rows name their labels, separated by spaces, with an optional `labels.txt` of "name<TAB>text" lines.

    Without it the labels are the names that occur, in the order of code points, and a name is its own text; a
    filter file, which numbers labels, then has nothing to count by.
    """

    def __init__(self, root: Path, tell: Tell | None = None) -> None:
        super().__init__(root, tell)
        self._labels: LabelTable | None = None
        self._numbers: dict[str, int] = {}

    def labels(self) -> LabelTable:
        """Return the label table: that of `labels.txt` in its order, or the names of all splits, sorted."""
        if self._labels is None:
            path = self.path("labels")
            self._labels = self._listed(path) if path.is_file() else self._collected(path)
            self._numbers = {name: number for number, name in enumerate(self._labels.ids)}
        return self._labels

    @abstractmethod
    def _lines(self, split: str) -> Iterator[tuple[str, str, str]]:
        """Yield the place ("FILE, line N"), the names as they stand there, and the text of each row."""

    def _listed(self, path: Path) -> LabelTable:
        ids: dict[str, int] = {}
        texts: list[str] = []
        for number, line in enumerate(read_lines(path, self.tell), 1):
            name, tab, text = line.partition("\t")
            where = f"{path}, line {number}"
            if fault := id_complaint(name) or (f"the name {excerpt(name)} holds a space" if " " in name else None):
                raise InputError(f"{where}: {fault}")
            if fault := complaint(text) if tab else None:
                raise InputError(f"{where}: {fault}")
            if name in ids:
                raise InputError(f"{where}: {excerpt(name)} was given before, as label {ids[name]} (from 0)")
            ids[name] = len(ids)
            texts.append(text if tab else name)
        return LabelTable(tuple(ids), tuple(texts))

    def _collected(self, missing: Path) -> LabelTable:
        for split in self.SPLITS:
            if path := filter_path(self.root, split):
                raise InputError(f"{path}: numbers labels, but {missing.name} is not there, and nothing says in which order")
        names: dict[str, str] = {}
        for split in self.splits():
            for where, line, _ in self._lines(split):
                names.update((name, where) for name in line.split(" ") if name and name not in names)
        if not names:
            raise InputError(f"{missing}: the file does not exist, and no row names a label")
        for name, where in names.items():
            if fault := id_complaint(name) or complaint(name):
                raise InputError(f"{where}: {fault}")
        table = tuple(sorted(names))
        return LabelTable(table, table)

    def _rows(self, split: str) -> tuple[tuple[str, ...], Positives]:
        num_labels = len(self.labels())
        texts: list[str] = []
        rows = Rows(num_labels)
        for where, names, text in self._lines(split):
            if fault := complaint(text):
                raise InputError(f"{where}: {fault}")
            texts.append(text)
            rows.append([self._number(name, where) for name in names.split(" ") if name])
        return tuple(texts), rows.build()

    def _number(self, name: str, where: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            raise InputError(f"{where}: unknown label {excerpt(name)} (labels.txt has {len(self._numbers)} labels)")
        return number

    def _write_labels(self, place: Place, labels: LabelTable) -> None:
        for row, name in enumerate(labels.ids):
            if " " in name:
                raise InputError(f"labels, row {row}: the id {excerpt(name)} holds a space, which separates names here")
        lines = (f"{name}\t{text}" for name, text in zip(labels.ids, one_line("labels", labels.texts), strict=True))
        write_lines(place("labels"), lines)

    @staticmethod
    def _names(labels: LabelTable, split: Split) -> Iterator[str]:
        for row in range(len(split)):
            yield " ".join(labels.ids[label] for label in split.positives.row(row).tolist())


LABELS = (_FILE,)

__all__ = ["LABELS", "NamedLabels"]
