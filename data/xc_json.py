"""Raw texts of the Extreme Classification Repository: a JSON object a line in `trn.json.gz`, `tst.json.gz`, `lbl.json.gz`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from data.lines import Tell, complaint, excerpt, write_lines
from data.objects import field, id_of, read_objects
from data.rows import Rows
from data.two_splits import Place, TwoSplits
from dexml.errors import InputError
from dexml.types import LabelTable, Positives, Split


def _names(stem: str) -> tuple[str, ...]:
    return tuple(f"{stem}{raw}.json{end}" for end in (".gz", "") for raw in ("", ".raw"))


class XcJson(TwoSplits):
    """`lbl.json.gz` of {"uid", "title", "content"}; `trn.json.gz` and `tst.json.gz` with "target_ind" and "target_rel" too.

    A label's id is its `uid`, its number the line it has in `lbl.json.gz`, from 0. A text is the title, a space and the
    content, or the one that is there. `target_ind` holds label numbers and may be empty; `target_rel` may be missing, and a
    label of relevance 0 is no positive. Each file may also be called `.raw.json.gz`, and stand unpacked.
    """

    FILES: ClassVar = {"labels": _names("lbl"), "train": _names("trn"), "test": _names("tst")}

    def __init__(self, root: Path, tell: Tell | None = None) -> None:
        super().__init__(root, tell)
        self._labels: LabelTable | None = None

    @classmethod
    def found(cls, root: Path) -> bool:
        """Return whether any of the layout's files is there, so that a missing one is named when it is read."""
        return bool(cls.there(root, "labels", *cls.SPLITS))

    def labels(self) -> LabelTable:
        """Return the label table, in the file's order."""
        if self._labels is None:
            ids: dict[str, int] = {}
            texts: list[str] = []
            for where, row in read_objects(self.path("labels"), self.tell):
                name = id_of(row, "uid", where)
                if name in ids:
                    raise InputError(f"{where}, uid: {excerpt(name)} was given before, as label {ids[name]} (from 0)")
                ids[name] = len(ids)
                texts.append(_text(row, where))
            self._labels = LabelTable(tuple(ids), tuple(texts))
        return self._labels

    def _rows(self, split: str) -> tuple[tuple[str, ...], Positives]:
        num_labels = len(self.labels())
        texts: list[str] = []
        rows = Rows(num_labels)
        for where, row in read_objects(self.path(split), self.tell):
            texts.append(_text(row, where))
            rows.append(_targets(row, where, num_labels))
        return tuple(texts), rows.build()

    def _write_labels(self, place: Place, labels: LabelTable) -> None:
        rows = ({"uid": name, "title": text, "content": ""} for name, text in zip(labels.ids, labels.texts, strict=True))
        write_lines(place("labels"), map(_dump, rows))

    def _write_split(self, place: Place, name: str, labels: LabelTable, split: Split) -> None:
        write_lines(place(name), map(_dump, _objects(split)))


def _text(row: dict[str, Any], where: str) -> str:
    parts: list[str] = []
    for name in ("title", "content"):
        part = field(row, name, where) if name == "title" else row.get(name, "")
        if not isinstance(part, str):
            raise InputError(f"{where}, {name}: a string is needed, got {excerpt(part)}")
        if part:
            parts.append(part)
    text = " ".join(parts)
    if fault := complaint(text):
        raise InputError(f"{where}, title and content: {fault}")
    return text


def _targets(row: dict[str, Any], where: str, num_labels: int) -> list[int]:
    """Return the label numbers of a row, checked."""
    numbers = field(row, "target_ind", where)
    if not isinstance(numbers, list):
        raise InputError(f"{where}, target_ind: a list of label numbers is needed, got {excerpt(numbers)}")
    for place, number in enumerate(numbers):
        if type(number) is not int or not 0 <= number < num_labels:
            raise InputError(
                f"{where}, target_ind[{place}]: a label number is needed, 0 to {num_labels - 1}, got {excerpt(number)}"
            )
    if "target_rel" not in row:
        return numbers
    weights = row["target_rel"]
    if not isinstance(weights, list) or len(weights) != len(numbers):
        raise InputError(
            f"{where}, target_rel: a list of {len(numbers)} numbers is needed, as target_ind has, got {excerpt(weights)}"
        )
    for place, weight in enumerate(weights):
        if type(weight) not in (int, float) or not math.isfinite(weight):  # 1e999 is infinite, and JSON
            raise InputError(f"{where}, target_rel[{place}]: a number is needed, got {excerpt(weight)}")
    return numbers if all(weights) else [number for number, weight in zip(numbers, weights, strict=True) if weight]


def _objects(split: Split) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(split.texts):
        labels = split.positives.row(number).tolist()
        row = {"uid": str(number), "title": text, "content": "", "target_ind": labels, "target_rel": [1.0] * len(labels)}
        yield row


def _dump(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)
