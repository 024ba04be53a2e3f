"""The DEXML layout: texts in `raw/*.txt`, one per line, beside scipy CSR matrices `Y.trn.npz` and `Y.tst.npz`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from data.format import Format, check_writable
from data.lines import excerpt, read_lines, read_texts, staged
from dexml.errors import InputError
from dexml.table import unknown
from dexml.types import Int64Array, LabelTable, Positives, Split

_STEMS = {"train": "trn", "test": "tst"}


class XmcText(Format):
    """`raw/trn_X.txt`, `raw/tst_X.txt`, `raw/Y.txt`, `Y.trn.npz`, `Y.tst.npz`, and `filter_labels_*.txt` where wanted.

    A label's id is its row number in `raw/Y.txt`, counted from 0. Any non-zero value of the matrix is a positive.
    `root` may also be the `raw` folder itself.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(_home(root))
        self._labels: LabelTable | None = None

    @classmethod
    def found(cls, root: Path) -> bool:
        """Return whether any of the layout's own files is there, so that a missing one is named when it is read."""
        home = _home(root)
        return any((home / name).is_file() for name in ("raw/Y.txt", "raw/trn_X.txt", "Y.trn.npz"))

    def splits(self) -> tuple[str, ...]:
        """Return "train" and "test", each if its texts or its matrix is there."""
        return tuple(name for name in _STEMS if self._texts_path(name).is_file() or _matrix_path(self.root, name).is_file())

    def labels(self) -> LabelTable:
        """Return the label table; the ids are the row numbers as strings."""
        if self._labels is None:
            texts = read_texts(self.root / "raw" / "Y.txt")
            self._labels = LabelTable(tuple(map(str, range(len(texts)))), texts)
        return self._labels

    def read(self, split: str) -> Split:
        """Return "train" or "test"; `excluded` is None when the split has no filter file."""
        if split not in _STEMS:
            raise unknown("split", split, list(_STEMS))
        texts_path, matrix_path = self._texts_path(split), _matrix_path(self.root, split)
        texts, num_labels = read_texts(texts_path), len(self.labels())
        positives = _read_positives(matrix_path)
        if len(positives) != len(texts):
            raise InputError(
                f"{texts_path}: {len(texts)} lines, but {matrix_path.name} has {len(positives)} rows; each line is a row"
            )
        if positives.num_labels != num_labels:
            raise InputError(
                f"{matrix_path}: {positives.num_labels} columns, but raw/Y.txt has {num_labels} lines, one per label"
            )
        filter_path = _filter_path(self.root, split)
        excluded = _read_filter(filter_path, len(texts), num_labels) if filter_path.exists() else None
        return Split(texts, positives, excluded)

    @classmethod
    def write(cls, root: Path, labels: LabelTable, splits: Mapping[str, Split]) -> None:
        """Write "train" and "test" (either may be absent); ids other than row numbers are lost, the format has none.

        Raises InputError for a text that one line cannot hold, and where `root` holds a split that `splits` lacks.
        """
        for name in splits:
            if name not in _STEMS:
                raise unknown("split", name, list(_STEMS))
        check_writable(labels, splits)
        home = _home(root)
        for name in cls(home).splits() if home.is_dir() else ():
            if name not in splits:
                raise InputError(f"{home}: already holds the split {name!r}, which would not fit the new labels")
        with staged() as sibling:
            _write_texts(sibling(home / "raw" / "Y.txt"), "labels", labels.texts)
            for name, split in splits.items():
                _write_texts(sibling(home / "raw" / f"{_STEMS[name]}_X.txt"), name, split.texts)
                with sibling(_matrix_path(home, name)).open("wb") as stream:
                    sp.save_npz(stream, sp.csr_matrix(split.positives.matrix()))
                if split.excluded is not None:
                    pairs = _pairs(split.excluded)
                    sibling(_filter_path(home, name)).write_text("".join(f"{row} {label}\n" for row, label in pairs))
        for name, split in splits.items():
            if split.excluded is None:
                _filter_path(home, name).unlink(missing_ok=True)

    def _texts_path(self, split: str) -> Path:
        return self.root / "raw" / f"{_STEMS[split]}_X.txt"


def _home(root: Path) -> Path:
    """Return the folder that holds `raw/`, also when given `raw` itself."""
    return root.resolve().parent if root.resolve().name == "raw" and not (root / "raw").is_dir() else root


def _matrix_path(home: Path, split: str) -> Path:
    return home / f"Y.{_STEMS[split]}.npz"


def _filter_path(home: Path, split: str) -> Path:
    return home / f"filter_labels_{split}.txt"


def _read_positives(path: Path) -> Positives:
    """Return the non-zero entries of the scipy sparse matrix in `path`, every index and value checked."""
    if not path.is_file():
        raise InputError(f"{path}: the file does not exist")
    try:
        # scipy reads it with allow_pickle=False: an object array is refused, nothing is ever unpickled. The file is opened
        # here because numpy forgets to close one that it opened itself and cannot read.
        with path.open("rb") as stream:
            matrix: Any = sp.load_npz(stream)
        if matrix.format != "csr":
            raise InputError(f"{path}: a sparse matrix in {matrix.format} format; csr is needed")
        _check_range(path, matrix)
        matrix.check_format(full_check=True)
        csr = sp.csr_array(matrix)
    except InputError:
        raise
    except (
        # What numpy, scipy and zipfile raise on damaged bytes; RuntimeError is an encrypted member.
        *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError, MemoryError, RuntimeError),
        *(OverflowError, zipfile.BadZipFile, zlib.error),
    ) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a scipy sparse matrix in npz ({excerpt(reason, 120)})") from None
    if csr.data.dtype.kind not in "biuf":
        raise InputError(f"{path}: values of type {csr.data.dtype}; numbers are needed")
    if not np.isfinite(csr.data).all():
        place = int(np.flatnonzero(~np.isfinite(csr.data))[0])
        row = int(np.searchsorted(csr.indptr, place, side="right")) - 1
        raise InputError(f"{path}: row {row}, label {csr.indices[place]}: the value is {csr.data[place]}")
    return Positives.from_matrix(csr)


def _check_range(path: Path, matrix: Any) -> None:
    """Raise InputError for the first label number outside the matrix's columns."""
    indices, columns = np.asarray(matrix.indices), int(matrix.shape[1])
    outside = np.flatnonzero((indices < 0) | (indices >= columns))
    if len(outside):
        row = int(np.searchsorted(np.asarray(matrix.indptr), outside[0], side="right")) - 1
        label = indices[outside[0]]
        raise InputError(f"{path}: row {row} (from 0) has label {label}; labels 0 to {columns - 1} are allowed")


def _read_filter(path: Path, rows: int, num_labels: int) -> Positives:
    """Return the excluded pairs (rows, num_labels) of a filter file: "row label" per line, blank lines skipped."""
    pairs: list[int] = []
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
    ones = np.ones(len(table), dtype=np.float32)
    return Positives.from_matrix(sp.coo_array((ones, (table[:, 0], table[:, 1])), shape=(rows, num_labels)))


def _pairs(excluded: Positives) -> Iterable[tuple[int, int]]:
    rows = np.repeat(np.arange(len(excluded)), np.diff(excluded.indptr))
    return zip(rows.tolist(), excluded.indices.tolist(), strict=True)


def _write_texts(path: Path, what: str, texts: tuple[str, ...]) -> None:
    for row, text in enumerate(texts):
        if "\n" in text or text.endswith("\r") or (row == 0 and text.startswith("\ufeff")):
            raise InputError(f"{what}, row {row}: the text {excerpt(text)} does not fit one line; write it as jsonl")
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(f"{text}\n" for text in texts)
