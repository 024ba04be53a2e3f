"""Every row of FORMATS: one ten-label set, written in each format, reads back equal."""

from pathlib import Path

import numpy as np
import pytest

from data import FORMATS, open_format
from dexml.errors import InputError
from dexml.table import option_model
from dexml.types import LabelTable, Positives, Split

LABELS = LabelTable(
    tuple(f"skill/{number}" for number in range(10)),
    ("manage staff", "repair engines", "naïve Bayes", "Straße", "日本語", "a\u2028b", "x\x85y", "tabs\there", '"quoted"', "z"),
)
TEXTS = ("a plain text", "line\u2029separators \x0b\x0c\x1c inside", " leading and trailing ", "no labels", "🎉 emoji", "{}")
SPLITS = {
    "train": Split(
        TEXTS,
        Positives.from_rows([[9, 0], [3], [1, 2, 3, 4, 5, 6, 7, 8], [], [5], [0, 9]], 10),
        Positives.from_rows([[1], [], [], [2, 7], [], []], 10),
    ),
    "test": Split(("one", "two"), Positives.from_rows([[4], [2, 0]], 10)),
}
# Formats whose files have no room for string ids: theirs are the row numbers.
NUMBERED = {"xmc_text", "xc_sparse", "xc_single", "pecos"}

LABEL_FILES = {
    "jsonl": "labels.jsonl",
    "csv": "labels.csv",
    "parquet": "labels.parquet",
    "xc_json": "lbl.json.gz",
    "pecos": "output-items.txt",
    "libmultilabel": "labels.txt",
    "attentionxml": "labels.txt",
}


def same(left: Positives | None, right: Positives | None) -> bool:
    if left is None or right is None:
        return left is right
    return (
        left.num_labels == right.num_labels
        and np.array_equal(left.indptr, right.indptr)
        and np.array_equal(left.indices, right.indices)
    )


def check_equal(written: Split, read: Split) -> None:
    assert read.texts == written.texts
    assert same(written.positives, read.positives)
    assert same(written.excluded, read.excluded)


@pytest.fixture(params=list(FORMATS))
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return str(request.param)


def test_reads_what_it_wrote(name: str, tmp_path: Path):
    FORMATS[name].write(tmp_path / "set", LABELS, SPLITS)
    made = FORMATS.build(name, {}, tmp_path / "set")
    assert made.splits() == ("train", "test")
    assert made.labels().texts == LABELS.texts
    assert made.labels().ids == (tuple(map(str, range(10))) if name in NUMBERED else LABELS.ids)
    for split, written in SPLITS.items():
        check_equal(written, made.read(split))


def test_is_found_again_by_its_files(name: str, tmp_path: Path):
    FORMATS[name].write(tmp_path, LABELS, SPLITS)
    assert type(open_format(tmp_path)) is FORMATS[name]
    assert not FORMATS[name].found(tmp_path / "elsewhere")


def test_an_empty_exclusion_is_not_the_same_as_none(name: str, tmp_path: Path):
    nothing = Positives.from_rows([[], []], 10)
    FORMATS[name].write(tmp_path, LABELS, {"test": Split(("a", "b"), Positives.from_rows([[1], [2]], 10), nothing)})
    read = FORMATS.build(name, {}, tmp_path).read("test")
    assert same(read.excluded, nothing)


def test_writing_again_replaces_and_leaves_no_other_file(name: str, tmp_path: Path):
    FORMATS[name].write(tmp_path, LABELS, SPLITS)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    plain = {split: Split(made.texts[:1], made.positives.take(np.array([0]))) for split, made in SPLITS.items()}
    FORMATS[name].write(tmp_path, LABELS, plain)
    made = FORMATS.build(name, {}, tmp_path)
    for split, written in plain.items():
        check_equal(written, made.read(split))
    assert {path.name for path in tmp_path.rglob("*")} <= set(before)


def test_refuses_to_strand_a_split_of_other_labels(name: str, tmp_path: Path):
    FORMATS[name].write(tmp_path, LABELS, SPLITS)
    with pytest.raises(InputError, match="already holds the split 'test'"):
        FORMATS[name].write(tmp_path, LABELS, {"train": SPLITS["train"]})
    check_equal(SPLITS["test"], FORMATS.build(name, {}, tmp_path).read("test"))


def test_a_failed_write_changes_nothing(name: str, tmp_path: Path):
    FORMATS[name].write(tmp_path, LABELS, SPLITS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    bad = {**SPLITS, "test": Split(("fine", "half \ud800"), Positives.from_rows([[1], [2]], 10))}
    with pytest.raises(InputError, match=r"test, row 1: the text 'half \\ud800' holds half a surrogate pair"):
        FORMATS[name].write(tmp_path, LABELS, bad)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("text", ["", "  \t"])
def test_refuses_to_write_an_empty_text(name: str, tmp_path: Path, text: str):
    with pytest.raises(InputError, match="train, row 0: the text is empty"):
        FORMATS[name].write(tmp_path, LABELS, {"train": Split((text,), Positives.from_rows([[1]], 10))})


def test_refuses_positives_over_other_labels(name: str, tmp_path: Path):
    with pytest.raises(InputError, match="train: positives over 9 labels, the table has 10"):
        FORMATS[name].write(tmp_path, LABELS, {"train": Split(("a",), Positives.from_rows([[1]], 9))})


def test_refuses_weights_rather_than_dropping_them(name: str, tmp_path: Path):
    rows = Positives.from_rows([[1]], 10)
    weighted = Positives(rows.indptr, rows.indices, 10, np.ones(1, dtype=np.float32))
    with pytest.raises(ValueError, match="keeps no weights"):
        FORMATS[name].write(tmp_path, LABELS, {"train": Split(("a",), weighted)})


def test_an_unknown_split_names_the_known_ones(name: str, tmp_path: Path):
    FORMATS[name].write(tmp_path, LABELS, SPLITS)
    with pytest.raises(InputError, match=r"unknown split 'tset'; did you mean 'test'\? \(known: test, train\)"):
        FORMATS.build(name, {}, tmp_path).read("tset")


def test_a_missing_label_file_is_named(name: str, tmp_path: Path):
    FORMATS[name].write(tmp_path, LABELS, SPLITS)
    labels = LABEL_FILES.get(name, "raw/Y.txt")
    (tmp_path / labels).unlink()
    # A format whose rows name their labels can do without, but for the filter file, which numbers them.
    said = "labels.txt is not there" if labels == "labels.txt" else rf"{labels}: the file does not exist"
    with pytest.raises(InputError, match=said):
        FORMATS.build(name, {}, tmp_path).read("train")


def test_takes_no_options(name: str):
    assert option_model(FORMATS[name]).model_fields == {}


def test_unknown_folders_and_formats(tmp_path: Path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        open_format(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no data set of a known format"):
        open_format(tmp_path)
    with pytest.raises(InputError, match="unknown format 'json'; did you mean 'jsonl'"):
        open_format(tmp_path, "json")
