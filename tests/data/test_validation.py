"""The validation split: equal label sets stay together, and nothing is lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.validation import split_by_labels
from dexml.errors import InputError
from dexml.types import Positives


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 3), max_size=2), max_size=40),
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 9),
    max_rows=st.none() | st.integers(0, 10),
)
def test_label_sets_stay_on_one_side(rows: list[list[int]], fraction: float, seed: int, max_rows: int | None):
    positives = Positives.from_rows(rows, 4)
    train, validation = split_by_labels(positives, fraction, seed, max_rows)
    assert train.dtype == validation.dtype == np.int64
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(len(rows)))
    assert (np.diff(train) > 0).all() and (np.diff(validation) > 0).all()
    sets = [frozenset(row) for row in rows]
    assert not {sets[row] for row in train} & {sets[row] for row in validation}
    assert all(sets[row] for row in validation)
    assert len(validation) <= np.ceil(fraction * len(rows))
    assert max_rows is None or len(validation) <= max_rows
    again = split_by_labels(positives, fraction, seed, max_rows)
    assert np.array_equal(train, again[0]) and np.array_equal(validation, again[1])


def test_fills_the_fraction_with_whole_groups():
    positives = Positives.from_rows([[group] for group in range(100) for _ in range(10)], 100)
    _, validation = split_by_labels(positives, 0.1)
    assert len(validation) == 100 and len(set((validation // 10).tolist())) == 10
    assert not np.array_equal(validation, split_by_labels(positives, 0.1, seed=1)[1])
    assert len(split_by_labels(positives, 0.1, max_rows=35)[1]) == 30


def test_one_label_set_alone_cannot_be_split():
    assert len(split_by_labels(Positives.from_rows([[1], [1]], 2), 0.9)[1]) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_fractions_that_are_none(fraction: float):
    with pytest.raises(InputError, match=r"the fraction must lie in \[0, 1\)"):
        split_by_labels(Positives.from_rows([[0]], 1), fraction)
