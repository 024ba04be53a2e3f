"""Scores that any program saved of a split's rows: a scipy CSR matrix in npz, or a TREC run."""

from __future__ import annotations

import math
import zipfile
import zlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from data.lines import excerpt, read_lines, staged
from dexml.errors import InputError
from dexml.metrics import predictions
from dexml.types import Float32Array, Int64Array, LabelTable


def read_scores(path: Path, rows: int, labels: LabelTable) -> sp.csr_array:
    """Return the scores in `path` (N, L), in order of label numbers; stored zeros and negative ones are predictions.

    `.npz` is a scipy sparse matrix, whose entry (i, j) is the score of label j for row i. Anything else is a TREC run, plain
    or `.gz`: a line `qid Q0 docid rank score tag` per prediction, where qid is the number of the row, from 0, and docid the
    label's id; ranks are not read. Raises InputError with the line, or the shape, that does not fit.
    """
    scores = _read_npz(path) if path.suffix == ".npz" else _read_trec(path, rows, labels)
    if scores.shape != (rows, len(labels)):
        raise InputError(f"{path}: scores of {scores.shape[0]} rows and {scores.shape[1]} labels, but {rows} and {len(labels)}")
    try:
        return predictions(scores)
    except ValueError:
        place = int(np.flatnonzero(np.isnan(scores.data))[0])
        row = int(np.searchsorted(scores.indptr, place, side="right")) - 1
        raise InputError(f"{path}: row {row}, label {scores.indices[place]}: the score is NaN") from None


def write_scores(path: Path, ranked: Int64Array, scores: Float32Array, labels: int) -> None:
    """Write answers (N, K), −1 where one is missing, as a scipy CSR matrix (N, `labels`) in npz, whole or not at all."""
    there = ranked >= 0
    ends = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    matrix = sp.csr_array((scores[there], ranked[there], ends), shape=(len(ranked), labels))
    matrix.sort_indices()
    with staged() as sibling, sibling(path).open("wb") as stream:
        sp.save_npz(stream, sp.csr_matrix(matrix))


def _read_npz(path: Path) -> sp.csr_array:
    if not path.is_file():
        raise InputError(f"{path}: the file does not exist")
    try:
        # Opened here, because numpy forgets to close what it cannot read; scipy reads it with allow_pickle=False.
        with path.open("rb") as stream:
            matrix: Any = sp.load_npz(stream)
        csr = sp.csr_array(matrix)
        csr.check_format(full_check=True)
        if csr.nnz and (csr.indices.min() < 0 or csr.indices.max() >= csr.shape[1]):
            raise InputError(f"{path}: label {csr.indices.max()} lies outside of the {csr.shape[1]} labels of the matrix")
    except InputError:
        raise
    except (
        *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError, MemoryError, RuntimeError),
        *(OverflowError, zipfile.BadZipFile, zlib.error),
    ) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a scipy sparse matrix in npz ({excerpt(reason, 120)})") from None
    if csr.dtype.kind not in "biuf":
        raise InputError(f"{path}: scores of type {csr.dtype}; numbers are needed")
    return csr


def _read_trec(path: Path, rows: int, labels: LabelTable) -> sp.csr_array:
    numbers = {name: number for number, name in enumerate(labels.ids)}
    of_rows, of_labels, scores = array("q"), array("q"), array("d")
    lines = array("q")
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 6:
            raise InputError(f"{path}, line {number}: {len(fields)} fields; `qid Q0 docid rank score tag` are needed")
        qid, _, docid, _, score, _ = fields
        if not (qid.isascii() and qid.isdigit() and len(qid) <= 18 and int(qid) < rows):
            raise InputError(f"{path}, line {number}: the qid {excerpt(qid)} is no row of the split, 0 to {rows - 1}")
        label = numbers.get(docid)
        if label is None:
            raise InputError(f"{path}, line {number}: the docid {excerpt(docid)} is no label id of the data set")
        value = _number(score)
        if math.isnan(value):
            raise InputError(f"{path}, line {number}: the score {excerpt(score)} is no number")
        of_rows.append(int(qid))
        of_labels.append(label)
        scores.append(value)
        lines.append(number)
    pairs = np.frombuffer(of_rows, dtype=np.int64), np.frombuffer(of_labels, dtype=np.int64)
    order = np.lexsort((pairs[1], pairs[0]))
    row, label_of = pairs[0][order], pairs[1][order]
    double = np.flatnonzero((row[1:] == row[:-1]) & (label_of[1:] == label_of[:-1]))
    if len(double):
        first, second = (lines[place] for place in order[double[0] : double[0] + 2])
        raise InputError(f"{path}, line {second}: row and label of line {first} again")
    ends = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])
    return sp.csr_array((np.frombuffer(scores)[order], label_of, ends), shape=(rows, len(labels)))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
