"""Score files: what a scipy matrix and a TREC run say is read alike, and what is wrong with one is told."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from data.scores import read_scores, write_scores
from dexml.errors import InputError
from dexml.types import LabelTable

LABELS = LabelTable(("a", "b", "c", "d"), ("one", "two", "three", "four"))
DENSE = np.array([[0.5, 0.0, 0.25, 0.0], [0.0] * 4, [0.0, -1.0, 0.0, 2.0]])
RUN = "0 Q0 c 2 0.25 mine\n0\tQ0\ta\t1\t0.5\tmine\n\n2 Q0 d 1 2 mine\n2 Q0 b 2 -1e0 mine\n"


def test_a_matrix_and_a_trec_run_are_read_alike(tmp_path: Path):
    sp.save_npz(tmp_path / "scores.npz", sp.csr_matrix(DENSE))
    (tmp_path / "scores.trec").write_text(RUN)
    (tmp_path / "scores.run.gz").write_bytes(gzip.compress(RUN.encode()))
    for name in ("scores.npz", "scores.trec", "scores.run.gz"):
        read = read_scores(tmp_path / name, 3, LABELS)
        assert np.array_equal(read.toarray(), DENSE) and read.has_canonical_format, name


def test_answers_come_back_with_their_zeros(tmp_path: Path):
    ranked = np.array([[2, 0, -1], [-1, -1, -1], [3, 1, 2]])
    scores = np.array([[0.5, 0.0, -np.inf], [-np.inf] * 3, [0.1, -0.2, -0.3]], dtype=np.float32)
    write_scores(tmp_path / "answers.npz", ranked, scores, 4)
    read = read_scores(tmp_path / "answers.npz", 3, LABELS)
    assert read.nnz == 5 and read.dtype == np.float32
    assert read.indices.tolist() == [0, 2, 1, 2, 3] and read.data.tolist() == scores[[0, 0, 2, 2, 2], [1, 0, 1, 2, 0]].tolist()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 Q0 a 1 0.5", "line 2: 5 fields"),
        ("3 Q0 a 1 0.5 mine", "line 2: the qid '3' is no row of the split, 0 to 2"),
        ("-1 Q0 a 1 0.5 mine", "line 2: the qid '-1'"),
        ("٣ Q0 a 1 0.5 mine", "line 2: the qid"),
        ("0 Q0 z 1 0.5 mine", "line 2: the docid 'z' is no label id"),
        ("0 Q0 a 1 much mine", "line 2: the score 'much' is no number"),
        ("0 Q0 a 1 nan mine", "line 2: the score 'nan' is no number"),
        ("1 Q0 b 1 0.75 mine", "line 2: row and label of line 1 again"),
    ],
)
def test_a_line_that_does_not_fit_is_told(tmp_path: Path, line: str, said: str):
    path = tmp_path / "scores.trec"
    path.write_text(f"1 Q0 b 1 0.5 mine\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_scores(path, 3, LABELS)


def test_a_matrix_that_does_not_fit_is_told(tmp_path: Path):
    path = tmp_path / "scores.npz"
    with pytest.raises(InputError, match="does not exist"):
        read_scores(path, 3, LABELS)
    path.write_bytes(b"no npz at all")
    with pytest.raises(InputError, match="not a scipy sparse matrix"):
        read_scores(path, 3, LABELS)
    np.savez(path, data=np.array([object()]), indices=np.array([0]), indptr=np.array([0, 1]), shape=(1, 1), format=b"csr")
    with pytest.raises(InputError, match="not a scipy sparse matrix"):
        read_scores(path, 1, LABELS)  # an object array would need a pickle
    np.savez(path, data=np.ones(1), indices=np.array([9]), indptr=np.array([0, 1, 1, 1]), shape=(3, 4), format=b"csr")
    with pytest.raises(InputError, match=r"not a scipy sparse matrix|lies outside"):
        read_scores(path, 3, LABELS)
    sp.save_npz(path, sp.csr_matrix(DENSE))
    with pytest.raises(InputError, match="scores of 3 rows and 4 labels, but 5 and 4"):
        read_scores(path, 5, LABELS)
    sp.save_npz(path, sp.csr_matrix(DENSE * np.array([1, np.nan, 1, 1])))
    with pytest.raises(InputError, match="row 0, label 1: the score is NaN"):
        read_scores(path, 3, LABELS)
