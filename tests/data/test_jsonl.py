"""JSON Lines: ids and names, gzip, and every way in which a line can be wrong."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.jsonl import JsonLines
from dexml.errors import InputError
from dexml.text import text_fault
from dexml.types import LabelTable, Positives, Split

LABELS = [
    {"id": "L1", "text": "manage staff"},
    {"id": 2, "text": "repair engines"},
    {"id": "L3", "text": "same"},
    {"id": "L4", "text": "same"},
    {"id": "same id as a text", "text": "z"},
    {"id": "L6", "text": "L1"},
]


def dump(rows: list[object]) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "labels.jsonl").write_text(dump([*LABELS]))
    (tmp_path / "train.jsonl").write_text(dump([{"text": "good", "labels": ["L1"]}]))
    return tmp_path


def complaint(root: Path, *rows: object, labels: bool = False) -> str:
    """Return the error for a file whose first line is good and whose next lines are `rows`."""
    first = {"id": "L0", "text": "first"} if labels else {"text": "good", "labels": ["L1"]}
    (root / ("labels.jsonl" if labels else "train.jsonl")).write_text(dump([first, *rows]))
    with pytest.raises(InputError) as caught:
        JsonLines(root).read("train")
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(root), "ROOT")


def test_labels_are_found_by_id_then_by_text(root: Path):
    rows = [["L1"], [2, "2", "repair engines"], ["z", "same id as a text"], [], ["manage staff", "L4"]]
    (root / "dev.jsonl").write_text(dump([{"text": f"t{n}", "labels": row, "uid": n} for n, row in enumerate(rows)]))
    split = JsonLines(root).read("dev")
    assert [split.positives.row(row).tolist() for row in range(5)] == [[0], [1], [4], [], [0, 3]]
    assert split.excluded is None
    assert JsonLines(root).labels().ids[:2] == ("L1", "2")


def test_splits_are_the_files(root: Path):
    for name in ("unseen.jsonl", "test.jsonl.gz", "README.json", ".train.jsonl.1.tmp", ".hidden.jsonl", "notes.txt"):
        (root / name).write_text("")
    (root / "folder.jsonl").mkdir()
    assert JsonLines(root).splits() == ("train", "test", "unseen")


def test_gzip_blank_lines_and_a_byte_order_mark(root: Path):
    (root / "labels.jsonl").unlink()
    with gzip.open(root / "labels.jsonl.gz", "wt", encoding="utf-8-sig", newline="\r\n") as stream:
        stream.write(dump([*LABELS, ""]))
    assert JsonLines.found(root)
    assert len(JsonLines(root).labels()) == 6
    assert JsonLines(root).read("train").positives.row(0).tolist() == [0]


def test_a_file_beside_its_own_gzip_is_ambiguous(root: Path):
    (root / "train.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match=r"train\.jsonl: train\.jsonl\.gz is there too; keep one of them"):
        JsonLines(root).read("train")


def test_writing_takes_the_place_of_an_older_gzip(root: Path):
    (root / "train.jsonl").unlink()
    (root / "train.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    JsonLines.write(root, LabelTable(("a",), ("x",)), {"train": Split(("q",), Positives.from_rows([[0]], 1))})
    assert JsonLines(root).read("train").texts == ("q",)


@pytest.mark.parametrize("cut", [0, 2, 15, -9], ids=["empty", "two bytes", "15 bytes", "all but 9"])
def test_damaged_gzip(root: Path, cut: int):
    (root / "train.jsonl").unlink()
    (root / "train.jsonl.gz").write_bytes(gzip.compress(b"x" * 999)[:cut])
    if not cut:
        assert len(JsonLines(root).read("train")) == 0  # gzip of nothing is nothing
        return
    with pytest.raises(InputError, match=r"train\.jsonl\.gz: the gzip stream is damaged"):
        JsonLines(root).read("train")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"text": "a" "labels": []}', "line 2, column 14: not JSON: Expecting ',' delimiter"),
        ('{"text": "a', "line 2, column 10: not JSON: Unterminated string starting at"),
        ("[1]", 'line 2: an object like {"text": …} is needed, got [1]'),
        ("null", 'line 2: an object like {"text": …} is needed, got None'),
        ({"labels": []}, "line 2: the field 'text' is missing (there: 'labels')"),
        ({"text": "a", "label": ["L1"]}, "line 2: the field 'labels' is missing (there: 'text', 'label')"),
        ({}, "line 2: the field 'text' is missing (there: none)"),
        ({"text": 3, "labels": []}, "line 2, text: a string is needed, got 3"),
        ({"text": None, "labels": []}, "line 2, text: a string is needed, got None"),
        ({"text": "", "labels": []}, "line 2, text: the text is empty"),
        ({"text": " \n\t", "labels": []}, "line 2, text: the text is empty"),
        ({"text": " \u200b\u00ad", "labels": []}, "line 2, text: the text ' \\u200b\\xad' is empty"),
        ({"text": "a\0b", "labels": []}, "line 2, text: the text 'a\\x00b' holds the character U+0000"),
        ('{"text": "a\\ud800", "labels": []}', "line 2, text: the text 'a\\ud800' holds half a surrogate pair"),
        ({"text": "a", "labels": "L1"}, "line 2, labels: a list of label ids is needed, got 'L1'"),
        ({"text": "a", "labels": ["L1", 1.5]}, "line 2, labels[1]: a string or an integer is needed, got 1.5"),
        ({"text": "a", "labels": [True]}, "line 2, labels[0]: a string or an integer is needed, got True"),
        ({"text": "a", "labels": [None]}, "line 2, labels[0]: a string or an integer is needed, got None"),
        ({"text": "a", "labels": ["same"]}, "line 2, labels[0]: several labels have the text 'same'; use the id"),
        ({"text": "a", "labels": ["L11"]}, "line 2, labels[0]: unknown label 'L11'; did you mean 'L1'?"),
        (
            {"text": "a", "labels": ["repair engine"]},
            "line 2, labels[0]: unknown label 'repair engine'; did you mean 'repair engines'?",
        ),
        ({"text": "a", "labels": [77]}, "line 2, labels[0]: unknown label '77' (labels.jsonl has 6 labels)"),
        ({"text": "a", "labels": [], "excluded": [3]}, "line 2, excluded[0]: unknown label '3'"),
        ({"text": "a", "labels": [], "excluded": None}, "line 2, excluded: a list of label ids is needed, got None"),
        ("[" * 100_000, "line 2: not JSON that can be read"),
        ('{"text": ' + "1" * 5000 + "}", "line 2: not JSON that can be read"),
    ],
)
def test_bad_rows(root: Path, row: object, expected: str):
    assert complaint(root, row).startswith(f"ROOT/train.jsonl, {expected}")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": "L0", "text": "a"}, "line 2, id: 'L0' was given before, as label 0 (from 0)"),
        ({"id": "", "text": "a"}, "line 2, id: the id is empty"),
        ('{"id": "\\ud800", "text": "a"}', "line 2, id: the id '\\ud800' holds half a surrogate pair"),
        ({"id": "a\0", "text": "a"}, "line 2, id: the id 'a\\x00' holds the control character U+0000"),
        ({"id": "a\nb", "text": "a"}, "line 2, id: the id 'a\\nb' holds the control character U+000A"),
        ({"id": "a\x85b", "text": "a"}, "line 2, id: the id 'a\\x85b' holds the control character U+0085"),
        ({"id": "é" * 129, "text": "a"}, f"line 2, id: the id '{'é' * 58}… has 258 bytes of UTF-8; 256 are allowed"),
        ({"id": 10**256, "text": "a"}, f"line 2, id: the id '1{'0' * 57}… has 257 bytes of UTF-8; 256 are allowed"),
        ('{"id": "b", "text": "\\ud800"}', "line 2, text: the text '\\ud800' holds half a surrogate pair"),
        ({"id": "b", "text": "\0"}, "line 2, text: the text '\\x00' holds the character U+0000"),
        ({"id": 1.0, "text": "a"}, "line 2, id: a string or an integer is needed, got 1.0"),
        ({"id": False, "text": "a"}, "line 2, id: a string or an integer is needed, got False"),
        ({"id": "a"}, "line 2: the field 'text' is missing (there: 'id')"),
        ({"id": "a", "text": ""}, "line 2, text: the text is empty"),
        ({"text": "a"}, "line 2: the field 'id' is missing (there: 'text')"),
    ],
)
def test_bad_labels(root: Path, row: object, expected: str):
    assert complaint(root, row, labels=True) == f"ROOT/labels.jsonl, {expected}"


def test_the_longest_id_and_every_script(root: Path):
    ids = ["é" * 128, "x" * 256, " ", "名前 🎉", "a\u2028b", "\u200b"]
    (root / "labels.jsonl").write_text(dump([{"id": name, "text": "t"} for name in ids]))
    assert JsonLines(root).labels().ids == tuple(ids)


@pytest.mark.parametrize("name", ["", "\ud800", "a\tb", "\x7f", "é" * 129])
def test_ids_that_could_not_be_read_back_are_not_written(tmp_path: Path, name: str):
    table = LabelTable(("good", name), ("x", "y"))
    with pytest.raises(InputError, match=r"^labels, row 1: the id .*(is empty|holds|has 258 bytes)") as caught:
        JsonLines.write(tmp_path, table, {"train": Split(("q",), Positives.from_rows([[0]], 2))})
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_an_integer_and_its_string_are_one_id(root: Path):
    rows = ({"id": 7, "text": "a"}, {"id": "7", "text": "b"})
    assert complaint(root, *rows, labels=True) == "ROOT/labels.jsonl, line 3, id: '7' was given before, as label 1 (from 0)"


def test_a_long_value_is_cut(root: Path):
    assert len(complaint(root, {"text": "a", "labels": ["x" * 10_000]})) < 200


def test_bytes_that_are_not_utf8(root: Path):
    (root / "train.jsonl").write_bytes(b'{"text": "a", "labels": []}\n{"text": "caf\xe9", "labels": []}\n')
    with pytest.raises(InputError, match=r"train\.jsonl, line 2: byte 0xe9 at offset 41 is not UTF-8"):
        JsonLines(root).read("train")


def test_missing_splits(root: Path):
    with pytest.raises(InputError, match=r"test\.jsonl: the file does not exist"):
        JsonLines(root).read("test")
    with pytest.raises(InputError, match=r"unknown split '\.\./train'"):
        JsonLines(root).read("../train")


@pytest.mark.parametrize("name", ["labels", "", "../up", "a/b", ".hidden", "a\n", "ü"])
def test_split_names_that_no_file_can_have(tmp_path: Path, name: str):
    with pytest.raises(InputError, match=r"letters, digits, '\.', '_' and '-' are allowed"):
        JsonLines.write(tmp_path, LabelTable(("a",), ("x",)), {name: Split(("q",), Positives.from_rows([[0]], 1))})


TEXTS = st.text(min_size=1, max_size=20).filter(lambda text: text_fault(text) is None)
IDS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_anything_comes_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    root = tmp_path_factory.mktemp("jsonl")
    ids = data.draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
    table = LabelTable(tuple(ids), tuple(data.draw(TEXTS) for _ in ids))
    texts = data.draw(st.lists(TEXTS, max_size=5))
    rows = st.lists(st.lists(st.integers(0, len(ids) - 1), max_size=4), min_size=len(texts), max_size=len(texts))
    positives = Positives.from_rows(data.draw(rows), len(ids))
    excluded = data.draw(st.none() | rows)
    hidden = None if excluded is None or not texts else Positives.from_rows(excluded, len(ids))
    JsonLines.write(root, table, {"any-Name_1.2": Split(tuple(texts), positives, hidden)})
    made = JsonLines(root)
    read = made.read("any-Name_1.2")
    assert made.labels() == table and read.texts == tuple(texts)
    for wrote, got in ((positives, read.positives), (hidden, read.excluded)):
        assert (wrote is None) == (got is None)
        if wrote is not None and got is not None:
            assert np.array_equal(wrote.indptr, got.indptr) and np.array_equal(wrote.indices, got.indices)
