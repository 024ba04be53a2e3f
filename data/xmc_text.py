"""The DEXML layout: texts in `raw/*.txt`, one per line, beside scipy CSR matrices `Y.trn.npz` and `Y.tst.npz`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import scipy.sparse as sp

from data.lines import Tell, excerpt, one_line, write_lines
from data.numbered_labels import NumberedLabels
from data.two_splits import Place
from dexml.errors import InputError
from dexml.types import LabelTable, Positives, Split

_MATRICES = ("Y.trn.npz", "Y.tst.npz")


class XmcText(NumberedLabels):
    """`raw/trn_X.txt`, `raw/tst_X.txt`, `raw/Y.txt`, `Y.trn.npz`, `Y.tst.npz`, and `filter_labels_*.txt` where wanted.

    A label's id is its row number in `raw/Y.txt`, counted from 0. Any non-zero value of the matrix is a positive.
    `root` may also be the `raw` folder itself. The texts may have PECOS' names too: `X.trn.txt`, `output-items.txt`.
    """

    FILES: ClassVar = {
        "labels": ("raw/Y.txt", "output-items.txt"),
        "train": _MATRICES[:1],
        "train_texts": ("raw/trn_X.txt", "X.trn.txt"),
        "test": _MATRICES[1:],
        "test_texts": ("raw/tst_X.txt", "X.tst.txt"),
    }

    def __init__(self, root: Path, tell: Tell | None = None) -> None:
        super().__init__(_home(root), tell)

    @classmethod
    def found(cls, root: Path) -> bool:
        """Return whether a matrix is there, or raw texts without the matrix of another format, so that ours is named."""
        home = _home(root)
        texts = any((home / name).is_file() for name in ("raw/Y.txt", "raw/trn_X.txt"))
        others = any((home / name).is_file() for name in ("trn_X_Y.txt", "tst_X_Y.txt", "train.txt", "test.txt"))
        return any((home / name).is_file() for name in _MATRICES) or (texts and not others)

    def _rows(self, split: str) -> tuple[tuple[str, ...], Positives]:
        path = self.path(split)
        positives = _read_positives(path)
        self._check_labels(str(path), positives.num_labels)
        return self._texts(split, len(positives)), positives

    def _write_split(self, place: Place, name: str, labels: LabelTable, split: Split) -> None:
        write_lines(place(f"{name}_texts"), one_line(name, split.texts))
        with place(name).open("wb") as stream:
            sp.save_npz(stream, sp.csr_matrix(split.positives.matrix()))


def _home(root: Path) -> Path:
    """Return the folder that holds `raw/`, also when given `raw` itself."""
    return root.resolve().parent if root.resolve().name == "raw" and not (root / "raw").is_dir() else root


def _read_positives(path: Path) -> Positives:
    """Return the non-zero entries of the scipy sparse matrix in `path`, every index and value checked."""
    if not path.is_file():
        raise InputError(f"{path}: the file does not exist")
    try:
        # scipy reads it with allow_pickle=False: an object array is refused, nothing is ever unpickled. The file is opened
        # here because numpy forgets to close one that it opened itself and cannot read.
        with path.open("rb") as stream:
            matrix: Any = sp.load_npz(stream)
            kind = _index_type(stream)
        if matrix.format == "csr" and kind.kind not in "iu":
            raise InputError(f"{path}: label numbers of type {kind}; whole numbers are needed")
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


def _index_type(stream: IO[bytes]) -> np.dtype[Any]:
    """Return the type that the label numbers have in the file: scipy cuts fractions off without a word."""
    with zipfile.ZipFile(stream) as archive:
        if "indices.npy" not in archive.namelist():  # coo and dia have none
            return np.dtype(np.int64)
        with archive.open("indices.npy") as array:
            np.lib.format.read_magic(array)
            return np.lib.format.read_array_header_1_0(array)[2]


def _check_range(path: Path, matrix: Any) -> None:
    """Raise InputError for the first label number outside the matrix's columns."""
    indices, columns = np.asarray(matrix.indices), int(matrix.shape[1])
    outside = np.flatnonzero((indices < 0) | (indices >= columns))
    if len(outside):
        row = int(np.searchsorted(np.asarray(matrix.indptr), outside[0], side="right")) - 1
        label = indices[outside[0]]
        raise InputError(f"{path}: row {row} (from 0) has label {label}; labels 0 to {columns - 1} are allowed")
