from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from dexml.errors import InputError
from dexml.types import Bag, Features, LabelTable, Positives, Split, TopK

rows_of_labels = st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=8)


@given(rows_of_labels)
def test_positives_hold_sorted_unique_rows_in_the_order_given(rows):
    positives = Positives.from_rows(rows, 10)
    assert [positives.row(i).tolist() for i in range(len(positives))] == [sorted(set(row)) for row in rows]


@given(rows_of_labels, st.data())
def test_take_equals_indexing_the_matrix(rows, data):
    positives = Positives.from_rows(rows, 10)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9) if rows else st.just([])), dtype=np.int64)
    taken = positives.take(chosen)
    assert taken.matrix().toarray().tolist() == positives.matrix().toarray()[chosen].tolist()


def test_a_matrix_with_stored_zeros_doubles_and_unsorted_columns_is_put_in_order():
    matrix = sp.csr_matrix((np.array([2.0, 0.0, 1.0, 3.0]), np.array([3, 1, 0, 3]), np.array([0, 4, 4])), shape=(2, 5))
    positives = Positives.from_matrix(matrix)
    assert positives.row(0).tolist() == [0, 3]
    assert len(positives.row(1)) == 0
    assert positives.counts().tolist() == [1, 0, 0, 1, 0]
    assert matrix.nnz == 4, "the caller's matrix is left alone"


@pytest.mark.parametrize(
    ("indptr", "indices"),
    [([0, 2], [1, 1]), ([0, 2], [2, 1]), ([0, 1], [10]), ([0, 1], [-1]), ([1, 1], []), ([0, 2, 1, 2], [1, 2])],
)
def test_broken_positives_are_refused(indptr, indices):
    with pytest.raises(ValueError, match="positives"):
        Positives(np.array(indptr, dtype=np.int64), np.array(indices, dtype=np.int64), 10)


def test_positives_may_fall_between_rows_and_at_empty_ones():
    positives = Positives(np.array([0, 0, 2, 2, 3, 3]), np.array([4, 5, 0]), 6)
    assert [len(positives.row(i)) for i in range(5)] == [0, 2, 0, 1, 0]


def test_a_label_table_names_the_id_that_appears_twice():
    with pytest.raises(InputError, match="'b' appears twice"):
        LabelTable(("a", "b", "b"), ("x", "y", "z"))


def test_a_split_checks_its_rows():
    with pytest.raises(InputError, match="2 texts but 1 rows"):
        Split(("a", "b"), Positives.from_rows([[0]], 3))


def test_bags_are_taken_row_by_row():
    bag = Bag(torch.tensor([0, 2, 2, 3]), torch.tensor([5, 6, 7]), torch.tensor([1.0, 2.0, 3.0]))
    taken = Features(bag=bag, tokens=torch.tensor([2, 0, 1])).take(torch.tensor([2, 1, 0]))
    assert taken.bag is not None and taken.tokens is not None
    assert taken.bag.offsets.tolist() == [0, 1, 1, 3]
    assert taken.bag.features.tolist() == [7, 5, 6]
    assert taken.tokens.tolist() == [1, 0, 2]


def test_probabilities_come_from_the_stated_log_partition():
    scores = torch.tensor([[0.9, 0.1, -torch.inf]])
    topk = TopK(torch.tensor([[3, 1, -1]]), scores, torch.logsumexp(scores / 0.05, dim=1))
    probabilities = topk.probabilities(0.05)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)
    assert probabilities[0, 2].item() == 0
    with pytest.raises(ValueError, match="log-partition"):
        TopK(topk.ids, topk.scores).probabilities(0.05)
