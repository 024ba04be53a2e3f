"""`dexml data check`, `filter` and `convert`: what is counted, what is found, what is written."""

import json
from pathlib import Path

import numpy as np
import pytest

from data import FORMATS, open_format
from data.check import check, label_frequency
from dexml.__main__ import main
from dexml.types import LabelTable, Positives, Split

LABELS = LabelTable(("a", "b", "c", "d", "e"), ("apples", "pears", "plums", "plums", "figs"))
SPLITS = {
    "train": Split(
        (
            "red fruit",
            "red fruit",
            "green fruit",
            "apples",
            "cafÃ© fruit",
            "lost \ufffd byte",
            "e\u0301 apart",
            "bell \x07",
            "x" * 30,
        ),
        Positives.from_rows([[0], [1], [], [0, 1], [2], [2], [2], [0], [0]], 5),
    ),
    "test": Split(("green fruit", "apples", "pears", "new"), Positives.from_rows([[], [1], [4], [0]], 5)),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    FORMATS["jsonl"].write(tmp_path / "fruit", LABELS, SPLITS)
    return tmp_path / "fruit"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert ended.value.code == code, told.err + told.out
        return told.err if code == 2 else told.out

    return run


def test_everything_odd_is_found_and_counted(root: Path):
    findings = check(open_format(root), "jsonl", 25).findings
    found = {(finding.where, finding.what.partition(":")[0]): finding for finding in findings}
    not_excluded = "the text is a label's own text, and the pair is not excluded (`dexml data filter`)"
    assert {key: finding.count for key, finding in found.items()} == {
        ("train", "the text stands in an earlier row already"): 1,
        ("train", "UTF-8 that was read as Windows-1252 (Ã© for é)"): 1,
        ("train", "U+FFFD"): 1,
        ("train", "not in Unicode's normal form C"): 1,
        ("train", "control characters"): 1,
        ("train", "the text has more than 25 characters"): 1,
        ("train", "the row has no labels"): 1,
        ("train", not_excluded): 1,
        ("test", "the row has no labels"): 1,
        ("test", not_excluded): 2,
        ("labels", "the text stands in an earlier row already"): 1,
        ("labels", "the label has no training row"): 2,
        ("test", "the label occurs here, but in no training row"): 1,
        ("train and test", "the text is in train too, with the same labels"): 1,
        ("train and test", "the text is in train too, with other labels"): 1,
    }
    assert found["labels", "the label has no training row"].examples == ("row 3: 'plums'", "row 4: 'figs'")


def test_leakage_tells_labels_that_agree_from_those_that_do_not(root: Path):
    findings = check(open_format(root), "jsonl").findings
    leaks = {finding.what: finding.examples for finding in findings if finding.where == "train and test"}
    assert leaks == {
        "the text is in train too, with the same labels": ("row 0: 'green fruit'",),
        "the text is in train too, with other labels": ("row 1: 'apples'",),
    }


def test_frequencies():
    told = label_frequency(np.array([0, 0, 1, 2, 4, 5, 12, 100]))
    assert list(told["labels_by_training_rows"].items()) == [
        ("0", 2), ("1", 1), ("2-4", 2), ("5-9", 1), ("10-99", 1), ("100-999", 1), ("1000+", 0)
    ]  # fmt: skip
    assert (told["head"], told["torso"], told["tail"], told["most"]) == (1, 0, 7, 100)
    even = label_frequency(np.array([3] * 9))
    assert (even["head"], even["torso"], even["tail"]) == (3, 3, 3)
    assert label_frequency(np.zeros(3, dtype=np.int64))["head"] == 0


def test_check_prints_writes_json_and_ends_well_with_warnings(root: Path, tmp_path: Path, run):
    told = run("data", "check", root, "--json", tmp_path / "report.json")
    assert "jsonl, 5 labels" in told and "0 errors" in told and "warning in train: the row has no labels" in told
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["splits"]["train"] == {
        "rows": 9, "positives": 9, "per_row": 1.0, "most_in_a_row": 2, "rows_without_labels": 1, "labels_used": 3,
        "excluded": None, "characters": 11.2,
    }  # fmt: skip
    assert {finding["level"] for finding in report["findings"]} == {"warning"}


def test_check_reads_on_after_an_error_and_ends_with_1(root: Path, run):
    good = (root / "train.jsonl").read_text()
    (root / "train.jsonl").write_text(good + '{"text": "x", "labels": ["nobody"]}\n')
    told = run("data", "check", root, code=1)
    assert "error in train:" in told and "line 10, labels[0]: unknown label 'nobody'" in told and "1 error," in told
    assert "warning in test: the row has no labels" in told
    (root / "labels.jsonl").write_text("{}\n")
    assert "error in labels:" in run("data", "check", root, code=1)


def test_check_needs_a_data_set(tmp_path: Path, run):
    assert "holds no data set of a known format" in run("data", "check", tmp_path, code=2)
    assert "does not exist" in run("data", "check", tmp_path / "nowhere", code=2)


@pytest.mark.parametrize("name", ["jsonl", "xc_json", "xmc_text"])
def test_filter_writes_the_pairs_of_equal_texts_and_keeps_what_is_there(tmp_path: Path, run, name: str):
    FORMATS[name].write(tmp_path, LABELS, SPLITS)
    (tmp_path / "filter_labels_test.txt").write_text("3 4\n")
    told = run("data", "filter", tmp_path)
    assert "filter_labels_train.txt: 1 rows" in told and "filter_labels_test.txt: 2 rows" in told
    assert (tmp_path / "filter_labels_train.txt").read_text() == "3 0\n"
    assert (tmp_path / "filter_labels_test.txt").read_text() == "1 0\n2 1\n3 4\n"
    run("data", "filter", tmp_path)
    assert (tmp_path / "filter_labels_test.txt").read_text() == "1 0\n2 1\n3 4\n"
    assert not [finding for finding in check(open_format(tmp_path), name).findings if "label's own text" in finding.what]


def test_filter_leaves_rows_alone_that_say_what_is_excluded(tmp_path: Path, run):
    split = Split(("apples",), Positives.from_rows([[1]], 5), Positives.from_rows([[2]], 5))
    FORMATS["jsonl"].write(tmp_path, LABELS, {"train": split})
    assert "the rows of 'train' say what is excluded already" in run("data", "filter", tmp_path, code=2)
    assert not (tmp_path / "filter_labels_train.txt").exists()


def test_convert_there_and_back(root: Path, tmp_path: Path, run):
    run("data", "filter", root)
    assert "5 labels, 9 train, 4 test (csv)" in run("data", "convert", root, tmp_path / "csv", "--to", "csv")
    run("data", "convert", tmp_path / "csv", tmp_path / "xc", "--to", "xc_json", "--from", "csv")
    run("data", "convert", tmp_path / "xc", tmp_path / "back", "--to", "jsonl")
    before, after = open_format(root), open_format(tmp_path / "back")
    assert before.labels() == after.labels()
    for split in ("train", "test"):
        one, other = before.read(split), after.read(split)
        assert one.texts == other.texts and (one.positives.matrix() != other.positives.matrix()).nnz == 0
        assert one.excluded is not None and other.excluded is not None
        assert one.excluded.indices.tolist() == other.excluded.indices.tolist()


def test_convert_refuses_and_writes_nothing(root: Path, tmp_path: Path, run):
    out = tmp_path / "out"
    assert "unknown format 'json'; did you mean" in run("data", "convert", root, out, "--to", "json", code=2)
    FORMATS["jsonl"].write(root, LABELS, {**SPLITS, "dev": SPLITS["test"]})
    assert "unknown split 'dev'" in run("data", "convert", root, out, "--to", "pecos", code=2)
    run("data", "convert", root, out, "--to", "pecos", "--split", "train")
    assert open_format(out).splits() == ("train",)
    assert "is not empty; --force writes into it" in run("data", "convert", root, out, "--to", "csv", code=2)
    run("data", "convert", root, out, "--to", "pecos", "--split", "train", "--split", "test", "--force")
    assert open_format(out).splits() == ("train", "test")
    assert "is the folder that is read" in run("data", "convert", root, root, "--to", "csv", "--force", code=2)
