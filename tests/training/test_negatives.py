"""A known positive is never a negative: not mined, not in the batch; and what is drawn follows from the seed."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.nn.functional import normalize

from dexml.types import Positives
from training import negatives


@pytest.fixture
def known() -> Positives:
    generator = np.random.default_rng(0)
    return Positives.from_rows([generator.choice(300, size, replace=False) for size in generator.integers(0, 40, 150)], 300)


def test_mined_labels_are_the_best_wrong_ones(known: Positives):
    torch.manual_seed(0)
    queries, labels = normalize(torch.randn(150, 16), dim=1), normalize(torch.randn(300, 16), dim=1)
    mined = negatives.mine(iter(torch.split(queries, 64)), labels, known, 12)
    assert mined.shape == (150, 12)
    scores = (queries @ labels.T).numpy()
    for row in range(150):
        scores[row, known.row(row)] = -np.inf
        assert not set(mined[row]) & set(known.row(row))
        assert scores[row, mined[row]] == pytest.approx(np.sort(scores[row])[::-1][:12], abs=1e-5)


def test_mining_deeper_than_there_are_wrong_labels_ends_with_none():
    known = Positives.from_rows([[0, 1, 2], [0], []], 4)
    mined = negatives.mine([torch.eye(4)[:3]], torch.eye(4), known, 6)
    assert [sorted(row[row >= 0]) for row in mined] == [[3], [1, 2, 3], [0, 1, 2, 3]]
    assert (np.diff((mined < 0).astype(int), axis=1) >= 0).all(), "none comes last"


def test_excluded_pairs_are_not_mined():
    barred = negatives.union(Positives.from_rows([[0], [1]], 4), Positives.from_rows([[3], [0, 1]], 4))
    assert [barred.row(row).tolist() for row in range(2)] == [[0, 3], [0, 1]]
    mined = negatives.mine([torch.eye(4)[:2]], torch.eye(4), barred, 4)
    assert [sorted(row[row >= 0]) for row in mined] == [[1, 2], [2, 3]]


def test_positives_within_columns_keep_every_known_pair(known: Positives):
    columns = np.unique(np.random.default_rng(1).choice(300, 70))
    inside = negatives.within(known, columns)
    assert inside.num_labels == len(columns)
    for row in range(len(known)):
        assert columns[inside.row(row)].tolist() == [label for label in known.row(row) if label in columns]


def test_sampled_positives_are_positives_without_doubles(known: Positives):
    drawn = negatives.sample_positives(known, 5, np.random.default_rng(2))
    counts = np.diff(known.indptr)
    assert len(drawn) == np.minimum(counts, 5).sum()
    start = 0
    for row, count in enumerate(np.minimum(counts, 5)):
        part = drawn[start : start + count]
        assert len(set(part)) == count and set(part) <= set(known.row(row))
        start += count
    assert not np.array_equal(drawn, negatives.sample_positives(known, 5, np.random.default_rng(3)))


def test_sampled_mined_labels_are_of_their_row_and_none_is_left_out():
    mined = np.array([[4, 7, 1, -1], [2, -1, -1, -1], [-1, -1, -1, -1]])
    assert sorted(negatives.sample_mined(mined, 4, np.random.default_rng(0))) == [1, 2, 4, 7]
    firsts = {tuple(negatives.sample_mined(mined, 1, np.random.default_rng(seed))) for seed in range(40)}
    assert firsts == {(4, 2), (7, 2), (1, 2)}


def test_neighbours_in_a_graph_are_of_a_rows_positives_and_never_known():
    near = sp.csr_array(np.array([[0, 1, 1, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], float))
    positives = Positives.from_rows([[0, 1], [3], [4], []], 5)
    barred = negatives.union(positives, Positives.from_rows([[], [2], [], []], 5))
    found = negatives.neighbours(near, positives, positives, 3)
    assert found.tolist() == [[2, -1, -1], [2, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert negatives.neighbours(near, positives, barred, 3)[1].tolist() == [-1, -1, -1]
    near = sp.csr_array(np.array([[0, 0, 1, 1], [0, 0, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0]], float))
    assert negatives.neighbours(near, Positives.from_rows([[0, 1]], 4), Positives.from_rows([[0, 1]], 4), 1).tolist() == [[3]]
