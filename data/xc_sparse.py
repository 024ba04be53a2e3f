"""The sparse files of the Extreme Classification Repository, `trn_X_Y.txt` and `tst_X_Y.txt`, beside raw texts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar

from data.lines import read_lines
from data.numbered_labels import SparseText, check_count, read_header
from data.rows import Rows
from data.sparse_lines import header, pairs
from dexml.errors import InputError
from dexml.types import Positives

_FEATURES = {"trn_X_Y.txt": "trn_X_Xf.txt", "tst_X_Y.txt": "tst_X_Xf.txt"}


class XcSparse(SparseText):
    """`trn_X_Y.txt` and `tst_X_Y.txt`: the header "rows labels", then "label:value …" a row, with texts a line each beside.

    A blank line is a row without labels; a label of value 0 is no positive. Texts are `raw/trn_X.txt`, `raw/tst_X.txt`,
    `raw/Y.txt`, or the same without `raw/`, or `raw_data/train.raw.txt` and so on. Features (`trn_X_Xf.txt`) are not read,
    but for the number of their rows.
    """

    FILES: ClassVar = {"train": ("trn_X_Y.txt",), "test": ("tst_X_Y.txt",), **SparseText.TEXTS}

    @classmethod
    def found(cls, root: Path) -> bool:
        """Return whether a matrix is there, and its texts are not the repository's JSON files, which are a format alone."""
        return any((root / name).is_file() for name in _FEATURES) and not any(root.glob("lbl*.json*"))

    def _matrix(self, path: Path) -> Positives:
        lines = read_lines(path, self.tell)
        count, columns = header(next(lines, None), 2, "rows labels", f"{path}, line 1")
        self._check_labels(f"{path}, line 1", columns)
        features = path.with_name(_FEATURES[path.name])
        if features.is_file() and (told := read_header(features, 2, "rows features")[0]) != count:
            raise InputError(f"{features}, line 1: {told} rows, but {path.name} has {count}")
        rows = Rows(columns)
        for number, line in enumerate(islice(lines, count + 1), 2):
            rows.append(pairs(line, columns, "label", f"{path}, line {number}"))
        check_count(path, count, len(rows))
        return rows.build()

    @staticmethod
    def _matrix_lines(positives: Positives) -> Iterator[str]:
        yield f"{len(positives)} {positives.num_labels}"
        for row in range(len(positives)):
            yield " ".join(f"{label}:1" for label in positives.row(row).tolist())
