"""Batches: every row once per epoch, the same order for the same seed, and a stop anywhere."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches import Batches
from dexml.errors import InputError


@settings(max_examples=80, deadline=None)
@given(rows=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 2**40))
def test_each_epoch_gives_every_row_once_and_no_empty_batch(rows: int, size: int, seed: int):
    batches = Batches(rows, size, seed)
    for epoch in range(2):
        given = list(batches)
        assert batches.epoch == epoch
        assert len(given) == len(batches)
        assert all(batch.dtype == np.int64 and 0 < len(batch) <= size for batch in given)
        assert sorted(np.concatenate(given).tolist()) == list(range(rows))


@settings(max_examples=80, deadline=None)
@given(rows=st.integers(1, 30), size=st.integers(1, 12), stop=st.integers(0, 70), seed=st.integers(0, 99))
def test_goes_on_exactly_where_it_stopped(rows: int, size: int, stop: int, seed: int):
    whole, first, second = Batches(rows, size, seed), Batches(rows, size, seed), Batches(rows, size, seed)
    epochs = stop // len(whole) + 2
    expected = [(whole.epoch, batch.tolist()) for _ in range(epochs) for batch in whole]
    given: list[tuple[int, list[int]]] = []
    while len(given) < stop:
        for batch in first:
            given.append((first.epoch, batch.tolist()))
            if len(given) == stop:
                break
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    while len(given) < len(expected):
        given.extend((second.epoch, batch.tolist()) for batch in second)
    assert given == expected


def test_epochs_and_seeds_differ():
    one, other = Batches(100, 100, 1), Batches(100, 100, 2)
    first, second, third = next(iter(one)).tolist(), next(iter(one)).tolist(), next(iter(other)).tolist()
    assert first != second and first != third


def test_the_state_is_not_moved_by_reading_it():
    batches = Batches(10, 5)
    steps = iter(batches)
    next(steps)
    assert batches.state_dict() == batches.state_dict() == {"rows": 10, "size": 5, "seed": 0, "epoch": 0, "batch": 1}
    next(steps)  # the epoch's last: the next batch is the first of the next epoch
    assert batches.state_dict()["epoch"] == 1 and batches.state_dict()["batch"] == 0 and batches.epoch == 0


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"rows": 9}, "the state has rows 9, this run 10"),
        ({"size": 2}, "the state has size 2, this run 5"),
        ({"seed": 3}, "the state has seed 3, this run 0"),
        ({"epoch": -1}, "the state says epoch -1, batch 0 of 2"),
        ({"batch": 2}, "the state says epoch 0, batch 2 of 2"),
        ({"batch": "1"}, "the state says epoch 0, batch '1' of 2"),
    ],
)
def test_a_state_of_another_run(state: dict[str, object], expected: str):
    batches = Batches(10, 5)
    with pytest.raises(InputError, match=expected):
        batches.load_state_dict({**batches.state_dict(), **state})


@pytest.mark.parametrize(("rows", "size", "seed"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_impossible_batches(rows: int, size: int, seed: int):
    with pytest.raises(InputError, match=r"at least [01]|at least one row"):
        Batches(rows, size, seed)
