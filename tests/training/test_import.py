"""`dexml import`: a model that is there gets an index and all commands; rows of someone else's making are checked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dexml.__main__ import main
from dexml.bundle import Bundle
from index.retriever import Retriever
from index.store import Store

LABELS = {
    "sorting": "sorting arrays",
    "fft": "fourier transform of a signal",
    "sparse": "sparse matrices",
    "text": "text strings",
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object, fails: bool = False) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert ended.value.code == (2 if fails else 0), told.err
        assert not fails or (told.err.startswith("dexml: ") and told.err.count("\n") == 1), told.err
        return told.err if fails else told.out

    return run


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A data set of four labels and three test rows."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "labels.jsonl").write_text("".join(json.dumps({"id": id_, "text": text}) + "\n" for id_, text in LABELS.items()))
    rows = [{"text": f"please explain {LABELS[id_]}", "labels": [id_]} for id_ in ("sorting", "fft", "sparse")]
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_an_imported_model_is_searched_measured_served_and_changed(run, files: Path, tiny_transformer: Path, tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    out = tmp_path / "mine"
    given = ("--model", tiny_transformer, "--labels", files / "labels.jsonl")
    assert "4 labels, 32 dimensions" in run("import", *given, "--out", out, "--temperature", "0.1", "--index", "exact")
    opened = Bundle.open(out)
    model = SentenceTransformer(str(tiny_transformer), device="cpu")
    assert np.abs(opened.embeddings.numpy() - model.encode(list(LABELS.values()))).max() < 1e-6
    assert opened.labels.ids == tuple(LABELS) and not opened.train_counts.any()
    told = opened.manifest.training
    assert told.finished and told.steps == told.step == 0 and told.fingerprint == ""
    assert told.config["import"]["model"] == str(tiny_transformer) and told.config["import"]["max_tokens"] == 32
    assert opened.manifest.name == "mine" and opened.manifest.temperature == 0.1

    assert json.loads(run("search", out, "sorting arrays", "-k", "1", "--json"))[0]["id"] == "sorting"
    assert "P@1" in run("evaluate", out), "on the splits that stand beside the labels"
    (tmp_path / "new.jsonl").write_text('{"id": "ode", "text": "differential equations"}\n')
    assert "1 added" in run("labels", "add", out, tmp_path / "new.jsonl")
    assert "an import" in run("index", out)
    assert "published as v000002: 5 labels" in run("index", out, "--compact")
    assert json.loads(run("search", out, "differential equations", "-k", "1", "--json"))[0]["id"] == "ode"


def test_an_imported_bundle_answers_over_http(run, files: Path, tiny_transformer: Path, tmp_path: Path):
    from serve import create_app
    from serve.settings import Settings

    run("import", "--model", tiny_transformer, "--labels", files / "labels.jsonl", "--out", tmp_path / "mine")
    app = create_app(Settings(bundle=tmp_path / "mine"), Retriever.open(tmp_path / "mine"))
    worker = app.extensions["dexml"].worker
    assert worker.wait_until_loaded(30)
    try:
        answer = app.test_client().post("/v1/search", json={"queries": ["sparse matrices"], "top_k": 1})
    finally:
        worker.stop()
    assert answer.status_code == 200 and '"sparse"' in answer.get_data(as_text=True)


def test_rows_are_taken_as_they_are_and_made_unit_rows(run, files: Path, tiny_transformer: Path, tmp_path: Path):
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(4, 32)) * np.array([1e-200, 1.0, 1e200, 3.0])[:, None]
    unit = (rows[1] / np.linalg.norm(rows[1])).astype(np.float32)
    rows[1] = unit
    np.save(tmp_path / "rows.npy", rows)
    given = ("--model", tiny_transformer, "--labels", files / "labels.jsonl", "--embeddings", tmp_path / "rows.npy")
    run("import", *given, "--out", tmp_path / "mine", "--name", "theirs")
    made = Store.open(tmp_path / "mine").bundle
    assert made.manifest.name == "theirs"
    found = made.embeddings.numpy()
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6
    assert np.array_equal(found[1], unit), "a unit row stays, bit by bit"
    largest = rows / np.abs(rows).max(axis=1, keepdims=True)
    assert np.abs(found - largest / np.linalg.norm(largest, axis=1, keepdims=True)).max() < 1e-6
    np.save(tmp_path / "half.npy", rows.clip(-6e4, 6e4)[[1, 1, 1, 1]].astype(np.float16))
    run("import", *given[:-1], tmp_path / "half.npy", "--out", tmp_path / "half")


def broken(kind: str, path: Path) -> None:
    rows = np.ones((4, 32), dtype=np.float32)
    if kind == "zeros":
        rows[2] = 0
    elif kind == "nan":
        rows[3, 7] = np.nan
    elif kind == "infinite":
        rows[0, 0] = np.inf
    made = {
        "shape": rows[:3],
        "width": rows[:, :16],
        "flat": rows.ravel(),
        "integers": np.ones((4, 32), dtype=np.int8),
        "objects": np.array([[object()] * 32] * 4),
        "scalar": np.float32(1),
    }
    if kind == "bytes":
        path.write_bytes(b"no array")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "archive":
        with path.open("wb") as file:
            np.savez(file, rows=rows)
    elif kind == "cut":
        np.save(path, rows)
        path.write_bytes(path.read_bytes()[:-1])
    elif kind != "missing":
        np.save(path, made.get(kind, rows))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "rows.npy: the file does not exist"),
        ("bytes", "rows.npy: cannot be read as a .npy file"),
        ("empty", "rows.npy: cannot be read as a .npy file"),
        ("cut", "rows.npy: cannot be read as a .npy file"),
        ("objects", "rows.npy: cannot be read as a .npy file"),
        ("archive", "rows.npy: an archive"),
        ("shape", "rows of shape (3, 32), but 4 labels and a model of 32 dimensions need (4, 32)"),
        ("width", "rows of shape (4, 16)"),
        ("flat", "rows of shape (128,)"),
        ("scalar", "rows of shape ()"),
        ("integers", "floating-point numbers are needed, got int8"),
        ("zeros", "row 2 (from 0, label 'sparse') is all zeros"),
        ("nan", "row 3 (from 0, label 'text') holds a number that is not finite"),
        ("infinite", "row 0 (from 0, label 'sorting') holds a number that is not finite"),
    ],
)
def test_bad_rows_are_told_and_no_bundle_is_made(
    run, files: Path, tiny_transformer: Path, tmp_path: Path, kind: str, said: str
):
    broken(kind, tmp_path / "rows.npy")
    given = ("--model", tiny_transformer, "--labels", files / "labels.jsonl", "--embeddings", tmp_path / "rows.npy")
    assert said in run("import", *given, "--out", tmp_path / "mine", fails=True)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--model": "nowhere/model"}, "--model: 'nowhere/model' is no folder; a hub model needs --revision"),
        ({"--model": "data"}, "encoder.model: data cannot be opened"),
        ({"--labels": "nowhere.jsonl"}, "nowhere.jsonl: the file does not exist"),
        ({"--labels": "none.jsonl"}, "none.jsonl: the file holds no label"),
        ({"--labels": "rows.jsonl"}, "line 1, embedding: rows come in a file of their own"),
        ({"--labels": "twice.jsonl"}, "line 2, id: 'a' stands in line 1 already"),
        ({"--out": "data"}, "--out: the folder data is there already"),
        ({"--out": "none.jsonl"}, "--out: none.jsonl is there already, and is no folder"),
        ({"--index": "exat"}, "unknown index 'exat'; did you mean 'exact'?"),
        ({"--temperature": "0"}, "--temperature must be above 0, got 0"),
        ({"--temperature": "nan"}, "--temperature must be above 0, got nan"),
        ({"--name": " "}, "--name"),
    ],
)
def test_what_cannot_be_imported_is_told(run, files, tiny_transformer: Path, tmp_path: Path, monkeypatch, changed, said: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "embedding": [1.0]}\n')
    (tmp_path / "twice.jsonl").write_text('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n')
    options = {"--model": tiny_transformer, "--labels": "data/labels.jsonl", "--out": "mine", **changed}
    assert said in run("import", *[part for option in options.items() for part in option], fails=True)
    assert not (tmp_path / "mine").exists()
