"""Excluded pairs leave the answers before the top-k, and a data set of another size is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data import open_format
from dexml import metrics
from dexml.errors import InputError
from dexml.types import LabelTable, Positives, Split
from index.retriever import Retriever
from training.evaluate import evaluate


def quiet(rows: int) -> None: ...


def test_excluded_labels_are_no_answers_and_those_below_move_up(tiny_bundle: Path, tiny_data: Path):
    retriever = Retriever.open(tiny_bundle)
    split = open_format(tiny_data).read("test")
    plain = evaluate(retriever, retriever.labels, split, metrics.DEFAULT_PROPENSITY, quiet)
    assert plain.figures["P@1"] == 100
    firsts = Positives.from_rows([[int(row[0])] for row in plain.ranked], split.positives.num_labels)
    filtered = evaluate(
        retriever, retriever.labels, Split(split.texts, split.positives, firsts), metrics.DEFAULT_PROPENSITY, quiet
    )
    assert filtered.figures["P@1"] == 0
    assert np.array_equal(filtered.ranked[:, :9], plain.ranked[:, 1:10])
    assert np.array_equal(filtered.scores[:, :9], plain.scores[:, 1:10])
    assert (filtered.ranked[:, 9:] == -1).all()


def test_a_data_set_of_another_size_is_refused(tiny_bundle: Path):
    retriever = Retriever.open(tiny_bundle)
    labels, split = retriever.labels, Split(("a",), Positives.from_rows([[0]], 10))
    more = LabelTable((*labels.ids, "more"), (*labels.texts, "more"))
    with pytest.raises(InputError, match="11 labels, but the bundle was trained on 10"):
        evaluate(retriever, more, split, metrics.DEFAULT_PROPENSITY, quiet)
    turned = LabelTable(labels.ids[::-1], labels.texts[::-1])
    with pytest.raises(InputError, match="label 0 is 'strings', but the bundle's is 'sorting'"):
        evaluate(retriever, turned, split, metrics.DEFAULT_PROPENSITY, quiet)
    with pytest.raises(InputError, match="no rows"):
        evaluate(retriever, labels, Split((), Positives.from_rows([], 10)), metrics.DEFAULT_PROPENSITY, quiet)
