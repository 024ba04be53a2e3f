"""One data set in every format: equal when it is read again, or refused with the row."""

from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import FORMATS
from dexml.errors import InputError
from dexml.text import text_fault
from dexml.types import LabelTable, Positives, Split

NUMBERED = {"xmc_text", "xc_sparse", "xc_single", "pecos"}  # ids are row numbers
RECORDS = {"jsonl", "csv", "parquet"}  # and xc_json hold any text at all
NAMED = {"libmultilabel", "attentionxml"}  # spaces separate the labels' names


EVERY = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(name == "parquet" and find_spec("pyarrow") is None, reason="needs pyarrow"))
        for name in FORMATS
    ],
)


def equal(left: Positives | None, right: Positives | None) -> bool:
    if left is None or right is None:
        return left is right
    same = np.array_equal(left.indptr, right.indptr) and np.array_equal(left.indices, right.indices)
    return same and left.num_labels == right.num_labels


TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from('\n\r\t,;"[]: \u2028\x85\ufeffé🎉')),
    min_size=1,
    max_size=12,
).filter(lambda text: text_fault(text) is None)
IDS = st.text(st.one_of(st.characters(exclude_categories=["Cc", "Cs"]), st.sampled_from('[];, "')), min_size=1, max_size=5)


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[LabelTable, dict[str, Split]]:
    ids = draw(st.lists(IDS, min_size=1, max_size=5, unique=True))
    table = LabelTable(tuple(ids), tuple(draw(TEXTS) for _ in ids))
    splits = {}
    for split in draw(st.sampled_from([("train",), ("train", "test")])):
        texts = draw(st.lists(TEXTS, min_size=1, max_size=4))
        rows = st.lists(st.lists(st.integers(0, len(ids) - 1), max_size=3), min_size=len(texts), max_size=len(texts))
        excluded = draw(st.none() | rows)
        hidden = None if excluded is None else Positives.from_rows(excluded, len(ids))
        splits[split] = Split(tuple(texts), Positives.from_rows(draw(rows), len(ids)), hidden)
    return table, splits


def holds(name: str, table: LabelTable, splits: dict[str, Split]) -> bool:
    """Return whether a format's own rules leave room for all texts and ids."""
    if name in RECORDS or name == "xc_json":
        return True
    if name in NAMED and any(" " in label for label in table.ids):
        return False
    files = [table.texts, *(split.texts for split in splits.values())]
    tabs = [text for split in splits.values() for text in split.texts if "\t" in text]
    broken = [text for texts in files for text in texts if "\n" in text or text.endswith("\r")]
    marked = [texts for texts in files if texts[0].startswith("\ufeff")]
    return not broken and not marked and not (name == "libmultilabel" and tabs)


@EVERY
@settings(max_examples=60, deadline=None)
@given(made=data_sets())
def test_a_data_set_comes_back_or_is_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory, made: tuple[LabelTable, dict[str, Split]]
):
    table, splits = made
    root = tmp_path_factory.mktemp("set")
    if not holds(name, table, splits):
        with pytest.raises(
            InputError, match=r"(labels|train|test), row \d+: the (text .* does not fit one|id .* holds a space)"
        ):
            FORMATS[name].write(root, table, splits)
        assert not [path for path in root.rglob("*") if path.is_file()]
        return
    FORMATS[name].write(root, table, splits)
    files = FORMATS.build(name, {}, root)
    assert files.labels().texts == table.texts and files.splits() == tuple(splits)
    assert files.labels().ids == (tuple(map(str, range(len(table)))) if name in NUMBERED else table.ids)
    for split, wrote in splits.items():
        read = files.read(split)
        assert read.texts == wrote.texts
        assert equal(read.positives, wrote.positives) and equal(read.excluded, wrote.excluded)
