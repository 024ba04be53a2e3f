"""`dexml labels` and `dexml index`: labels change without a training, and bad input changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dexml.__main__ import main


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "run" / "bundle")).parent


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str | Path, fails: bool = False) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert ended.value.code == (2 if fails else 0), told.err
        assert not fails or (told.err.startswith("dexml: ") and told.err.count("\n") == 1)
        return told.err if fails else told.out

    return run


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_labels_are_added_found_replaced_deleted_and_listed(run, bundle: Path, tmp_path: Path):
    new = lines(tmp_path / "new.jsonl", {"id": "both", "text": "filtering matrices by regression"}, {"id": 7, "text": "points"})
    assert "2 added, 0 replaced; 12 labels in v000001+1" in run("labels", "add", bundle, new)
    assert json.loads(run("search", bundle, "filtering matrices by regression", "-k", "1", "--json"))[0]["id"] == "both"
    assert "0 added, 2 replaced; 12 labels" in run("labels", "add", bundle, new)
    assert "1 deleted; 11 labels" in run("labels", "delete", bundle, "7")
    listed = [json.loads(line) for line in run("labels", "list", bundle).splitlines()]
    assert len(listed) == 11 and {"id": "both", "text": "filtering matrices by regression"} in listed

    whole = tmp_path / "with-embeddings.jsonl"
    whole.write_text(run("labels", "list", bundle, "--embeddings"))
    (tmp_path / "ids.txt").write_text("svd\nfft\n")
    assert "2 deleted" in run("labels", "delete", bundle, "--file", tmp_path / "ids.txt")
    assert "2 added, 9 replaced; 11 labels" in run("labels", "add", bundle, whole)
    again = [json.loads(line) for line in run("labels", "list", bundle, "--embeddings").splitlines()]
    first = [json.loads(line) for line in whole.read_text().splitlines()]
    for one, other in zip(sorted(again, key=lambda row: row["id"]), sorted(first, key=lambda row: row["id"]), strict=True):
        assert one["embedding"] == pytest.approx(other["embedding"], abs=1e-6) and one["text"] == other["text"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "no id"}, "line 2: the field 'id' is missing"),
        ({"id": "a"}, "line 2: a text or an embedding is needed"),
        ({"id": "a", "text": "x", "embeding": []}, "line 2: the field 'embeding' is not known"),
        ({"id": "", "text": "x"}, "line 2, id: the id is empty"),
        ({"id": "fine", "text": "x"}, "line 2, id: 'fine' stands in line 1 already"),
        ({"id": "a", "text": " "}, "line 2, text: the text is empty"),
        ({"id": "a", "embedding": [1.0, 2.0]}, "line 2, embedding: must have 32 numbers, got 2"),
        ({"id": "a", "embedding": [0] * 32}, "line 2, embedding: is all zeros"),
        ({"id": "a", "embedding": [True] * 32}, "line 2, embedding: a list of numbers is needed"),
        ({"id": "a", "embedding": [float("nan")] * 32}, "line 2: not JSON that can be read: NaN is no JSON"),
        ([1], "line 2: an object like"),
    ],
)
def test_a_bad_line_is_told_and_nothing_is_added(run, bundle: Path, tmp_path: Path, row: object, said: str):
    before = run("labels", "list", bundle)
    assert said in run("labels", "add", bundle, lines(tmp_path / "bad.jsonl", {"id": "fine", "text": "x"}, row), fails=True)
    assert run("labels", "list", bundle) == before


def test_what_cannot_be_done_is_told(run, bundle: Path, tmp_path: Path):
    new = lines(tmp_path / "new.jsonl", {"id": "svd", "text": "x"})
    assert "has a label 'svd' already" in run("labels", "add", bundle, new, "--if-exists", "error", fails=True)
    assert "no label 'sortng'; did you mean 'sorting'?" in run("labels", "delete", bundle, "svd", "sortng", fails=True)
    assert "svd" in run("labels", "list", bundle)
    assert "1 deleted" in run("labels", "delete", bundle, "svd", "sortng", "--missing-ok")
    assert "no version 'v7'" in run("index", bundle, "--activate", "v7", fails=True)


def test_versions_are_listed_verified_compacted_and_gone_back_to(run, bundle: Path):
    run("labels", "delete", bundle, "svd")
    assert "published as v000002: 9 labels" in run("index", bundle, "--compact")
    told = run("index", bundle)
    assert "v000001" in told and "v000002 (current)" in told and "v000001 after 1" in told
    assert "P@1" in run("evaluate", bundle), "a label that is gone is never found; the others count as ever"
    assert "v000003" in run("index", bundle, "--activate", "v000001")
    assert "svd" in run("labels", "list", bundle)
    assert run("index", bundle, "--verify").count("as they were written") == 2
    rows = bundle / "bundle" / "v000002" / "embeddings.safetensors"
    rows.chmod(0o644)
    content = bytearray(rows.read_bytes())
    content[-1] ^= 1
    rows.write_bytes(bytes(content))
    assert "v000002/embeddings.safetensors was changed" in run("index", bundle, "--verify", fails=True)


def test_an_index_is_tuned_kept_and_drawn(run, bundle: Path, tmp_path: Path):
    told = run("index", bundle, "--recall", "0.9", "--keep", "--report", tmp_path / "tuning.html")
    assert "exact" in told and "HNSW32" in told and "published as v000002" in told
    page = (tmp_path / "tuning.html").read_text()
    assert "<svg" in page and "HNSW32" in page and "http" not in page.replace("http-equiv", "")
    assert json.loads(run("search", bundle, "sorting of arrays", "-k", "1", "--json"))[0]["id"] == "sorting"
    (tmp_path / "unknown.txt").write_text("日本語\n")
    said = run("index", bundle, "--recall", "0.9", "--queries", tmp_path / "unknown.txt", fails=True)
    assert "knows no word" in said
    assert "at most 1" in run("index", bundle, "--recall", "1.5", fails=True)
