"""Filter files: pairs (row, label) that leave the predictions before top-k, as "row label" lines beside a data set."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from data.lines import excerpt, read_lines
from dexml.errors import InputError
from dexml.types import Int64Array, Positives

# The second name is that of data sets cut for NGAME and its relatives.
_SHORT = {"train": "trn_filter_labels.txt", "test": "tst_filter_labels.txt"}


def filter_name(split: str) -> str:
    """Return the name of a split's filter file."""
    return f"filter_labels_{split}.txt"


def filter_path(root: Path, split: str) -> Path | None:
    """Return the filter file of a split, or None. Raises InputError where two are there."""
    there = _there(root, split)
    if len(there) > 1:
        raise InputError(f"{there[0]}: {there[1].name} is there too; keep one of them")
    return there[0] if there else None


def read_filter(path: Path, rows: int, num_labels: int) -> Positives:
    """Return the excluded pairs (rows, num_labels) of a filter file: "row label" per line, blank lines skipped."""
    pairs = array("q")
    for number, line in enumerate(read_lines(path), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not all(field.isascii() and field.isdecimal() for field in fields):
            raise InputError(f"{path}, line {number}: two numbers, 'row label', are needed, got {excerpt(line)}")
        for field, what, limit in zip(fields, ("row", "label"), (rows, num_labels), strict=True):
            if len(field) > 18 or int(field) >= limit:
                raise InputError(f"{path}, line {number}: {what} {field} is out of range; {limit} {what}s are there")
        pairs.extend(map(int, fields))
    table: Int64Array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return _of_pairs(table[:, 0], table[:, 1], rows, num_labels)


def filter_lines(excluded: Positives) -> Iterator[str]:
    """Yield the lines of a filter file."""
    rows = np.repeat(np.arange(len(excluded)), np.diff(excluded.indptr))
    return (f"{row} {label}" for row, label in zip(rows.tolist(), excluded.indices.tolist(), strict=True))


def same_text(texts: Sequence[str], label_texts: Sequence[str]) -> Positives:
    """Return the pairs (N, L) of a row and a label with the very same text, positive or not.

    In the XC repository's sets with label texts, rows and labels are often the same things (products, articles): that a
    thing is found by its own name is no merit, and such reciprocal pairs are taken out.
    """
    by_text: dict[str, list[int]] = {}
    for number, text in enumerate(label_texts):
        by_text.setdefault(text, []).append(number)
    rows, labels = array("q"), array("q")
    for row, text in enumerate(texts):
        for number in by_text.get(text, ()):
            rows.append(row)
            labels.append(number)
    return _of_pairs(np.array(rows, dtype=np.int64), np.array(labels, dtype=np.int64), len(texts), len(label_texts))


def union(one: Positives | None, other: Positives) -> Positives:
    """Return the pairs of both."""
    return other if one is None else Positives.from_matrix(one.matrix() + other.matrix())


def clear_filters(root: Path, split: str, *, keep: bool) -> None:
    """Remove the filter files of a split that was written anew, but `keep` the one that belongs to it."""
    for path in _there(root, split):
        if not keep or path.name != filter_name(split):
            path.unlink()


def _there(root: Path, split: str) -> list[Path]:
    names = [filter_name(split), *([_SHORT[split]] if split in _SHORT else [])]
    return [root / name for name in names if (root / name).exists()]


def _of_pairs(rows: Int64Array, labels: Int64Array, num_rows: int, num_labels: int) -> Positives:
    ones = np.ones(len(rows), dtype=np.float32)
    return Positives.from_matrix(sp.coo_array((ones, (rows, labels)), shape=(num_rows, num_labels)))


__all__ = ["clear_filters", "filter_lines", "filter_name", "filter_path", "read_filter", "same_text", "union"]
