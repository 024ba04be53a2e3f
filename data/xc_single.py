"""The older files of the Extreme Classification Repository: labels and features of a row in one line of `train.txt`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar

from data.lines import excerpt, read_lines
from data.numbered_labels import SparseText, check_count, first_line
from data.rows import Rows
from data.sparse_lines import header, numbers, pairs
from dexml.errors import InputError
from dexml.types import Positives

_HEADER = re.compile(r"\d+ +\d+ +\d+\s*")


class XcSingle(SparseText):
    """`train.txt` and `test.txt`: the header "rows features labels", then "label,label feature:value …" a row.

    A row without labels starts with a space. Features are checked and left out; the texts are those of `xc_sparse`.
    """

    FILES: ClassVar = {"train": ("train.txt",), "test": ("test.txt",), **SparseText.TEXTS}

    @classmethod
    def found(cls, root: Path) -> bool:
        """Return whether `train.txt` or `test.txt` starts with three numbers."""
        return any(_HEADER.fullmatch(first_line(root / name)) for name in ("train.txt", "test.txt"))

    def _matrix(self, path: Path) -> Positives:
        lines = read_lines(path, self.tell)
        count, features, columns = header(next(lines, None), 3, "rows features labels", f"{path}, line 1")
        self._check_labels(f"{path}, line 1", columns)
        rows = Rows(columns)
        for number, line in enumerate(islice(lines, count + 1), 2):
            where = f"{path}, line {number}"
            labels, _, rest = line.partition(" ")
            if ":" in labels:
                raise InputError(f"{where}: a row without labels starts with a space, got {excerpt(line)}")
            rows.append(numbers(labels, columns, "label", where))
            pairs(rest, features, "feature", where)
        check_count(path, count, len(rows))
        return rows.build()

    @staticmethod
    def _matrix_lines(positives: Positives) -> Iterator[str]:
        yield f"{len(positives)} 0 {positives.num_labels}"
        for row in range(len(positives)):
            yield f"{','.join(map(str, positives.row(row).tolist()))} "
