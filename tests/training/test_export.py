"""`dexml export --to`: folders that open elsewhere and come back the same, and what cannot be exported is one line."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from dexml.__main__ import main
from index.retriever import Retriever

ROOT = Path(__file__).parents[2]
QUERIES = [
    f"{verb} {what}" for verb in ("how to do", "a fast way of") for what in ("sorting", "a matrix", "points", "text", "lines")
]


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} missing: pip install 'dexml[stores]'")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


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


def answers(bundle: Path) -> list[list[str]]:
    retriever = Retriever.open(bundle)
    found = retriever.search(QUERIES, 5)
    return [[found.labels.ids[row] for row in rows] for rows in found.topk.ids.tolist()]


def test_a_numpy_folder_comes_back_as_a_bundle_with_the_same_answers(run, bundle: Path, tmp_path: Path):
    run("labels", "delete", bundle, "svd")
    (tmp_path / "new.jsonl").write_text('{"id": "text", "text": "joining of text"}\n')
    run("labels", "add", bundle, tmp_path / "new.jsonl")
    out = tmp_path / "deep" / "rows"
    assert "10 labels of v000001+2" in run("export", bundle, "--to", "npy", "--out", out)
    assert sorted(path.name for path in out.iterdir()) == ["about.json", "embeddings.npy", "labels.jsonl"]
    about = json.loads((out / "about.json").read_text())
    assert about["labels"] == 10 and about["dimension"] == 32 and about["model"].startswith("tiny@sha256:")
    assert [path.name for path in out.parent.iterdir()] == ["rows"], "nothing half is left beside it"

    model = next(bundle.glob("v*/encoder"))
    given = ("--model", model, "--labels", out / "labels.jsonl", "--embeddings", out / "embeddings.npy")
    run("import", *given, "--out", tmp_path / "again")
    assert answers(tmp_path / "again") == answers(bundle)
    run("export", tmp_path / "again", "--to", "npy", "--out", tmp_path / "rows")
    assert (tmp_path / "rows" / "embeddings.npy").read_bytes() == (out / "embeddings.npy").read_bytes()


def test_a_bundle_without_labels_is_exported_too(run, bundle: Path, tmp_path: Path):
    ids = [json.loads(line)["id"] for line in run("labels", "list", bundle).splitlines()]
    run("labels", "delete", bundle, *ids)
    run("export", bundle, "--to", "npy", "--out", tmp_path / "rows")
    assert np.load(tmp_path / "rows" / "embeddings.npy").shape == (0, 32)
    assert (tmp_path / "rows" / "labels.jsonl").read_text() == ""


@pytest.mark.parametrize("kind", ["bag", "transformer"])
def test_a_hub_folder_opens_with_sentence_transformers_and_its_card_runs(
    run, bundle: Path, tiny_transformer: Path, tmp_path: Path, kind: str
):
    from sentence_transformers import SentenceTransformer

    if kind == "transformer":
        (tmp_path / "labels.jsonl").write_text('{"id": "a", "text": "sorting arrays"}\n{"id": "b", "text": "a signal"}\n')
        bundle = tmp_path / "imported"
        run("import", "--model", tiny_transformer, "--labels", tmp_path / "labels.jsonl", "--out", bundle)
    out = tmp_path / "hub"
    run("export", bundle, "--to", "hub-folder", "--out", out)
    retriever = Retriever.open(bundle)
    opened = SentenceTransformer(str(out), device="cpu")
    assert np.abs(opened.encode(QUERIES) - retriever.model.embed_queries(QUERIES)[0].numpy()).max() < 1e-5

    card = (out / "README.md").read_text()
    assert ("where dexml is installed" in card) == (kind == "bag")
    snippet = card.partition("```python\n")[2].partition("```")[0].replace('"a text"', json.dumps(QUERIES[0]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", snippet], cwd=out, env=environment, capture_output=True, text=True, check=True)
    found = retriever.search(QUERIES[:1], 1)
    assert done.stdout.split()[0] == found.labels.ids[int(found.topk.ids[0, 0])]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", "qdrnt"), "unknown target 'qdrnt'; did you mean 'qdrant'?"),
        (("--to", "npy"), "--to npy needs --out"),
        (("--to", "npy", "--out", "x", "--dsn", "y"), "--dsn does not go with --to npy"),
        (("--to", "npy", "--out", "there"), "--out: the folder there is there already"),
        (("--to", "hub-folder", "--out", "file"), "--out: file is there already, and is no folder"),
        (("--to", "npy", "--out", "file/rows"), "--out: file/rows cannot be written"),
    ],
)
def test_what_cannot_be_exported_is_told(run, bundle: Path, tmp_path: Path, monkeypatch, options, said: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("kept")
    (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.iterdir())
    assert said in run("export", bundle, *options, fails=True)
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "file").read_text() == "kept"


STORES = [
    pytest.param("qdrant", ("--collection", "a/b", "--path", "x"), "--collection: letters", marks=needs("qdrant_client")),
    pytest.param("qdrant", ("--collection", "a"), "give --url of a server, or --path", marks=needs("qdrant_client")),
    pytest.param("qdrant", ("--collection", "a", "--url", "h:1"), "--url: an address", marks=needs("qdrant_client")),
    pytest.param(
        "qdrant",
        ("--collection", "a", "--url", "http://127.0.0.1:1"),
        "qdrant: http://127.0.0.1:1: ",
        marks=needs("qdrant_client"),
    ),
    pytest.param("pgvector", ("--dsn", "x", "--table", 'a"; DROP'), "--table: a-z", marks=needs("psycopg", "pgvector")),
    pytest.param("pgvector", ("--dsn", "x", "--table", "a"), "pgvector: missing", marks=needs("psycopg", "pgvector")),
    pytest.param(
        "pgvector",
        ("--dsn", "host=127.0.0.1 port=1 dbname=x", "--table", "a"),
        "pgvector: connection failed",
        marks=needs("psycopg", "pgvector"),
    ),
    pytest.param("milvus", ("--collection", "a-b", "--path", "x.db"), "--collection: letters", marks=needs("pymilvus")),
    pytest.param("milvus", ("--collection", "a", "--path", "x"), "--path: milvus-lite needs", marks=needs("pymilvus")),
    pytest.param(
        "milvus", ("--collection", "a", "--url", "http://127.0.0.1:1"), "milvus: http://127.0.0.1:1: ", marks=needs("pymilvus")
    ),
]


@pytest.mark.parametrize(("target", "options", "said"), STORES)
def test_a_store_that_cannot_be_reached_or_named_is_told(run, bundle: Path, target: str, options: tuple[str, ...], said: str):
    assert said in run("export", bundle, "--to", target, *options, fails=True)


@pytest.mark.parametrize(
    ("target", "options", "modules"),
    [
        ("qdrant", ("--collection", "a", "--path", "x"), "qdrant_client"),
        ("pgvector", ("--dsn", "x", "--table", "a"), "psycopg, pgvector"),
        ("milvus", ("--collection", "a", "--path", "x.db"), "pymilvus"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(run, bundle: Path, monkeypatch, target: str, options, modules: str):
    found = importlib.util.find_spec
    hidden = modules.split(", ")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else found(name, *rest))
    said = run("export", bundle, "--to", target, *options, fails=True)
    assert said == f"dexml: {target}: {modules} missing; pip install 'dexml[{target}]'\n"


def test_what_contradicts_itself_is_a_question_of_usage(bundle: Path, capsys: pytest.CaptureFixture[str]):
    for options in ((), ("--onnx", "--to", "npy"), ("--onnx", "--out", "x")):
        with pytest.raises(SystemExit) as ended:
            main(["export", str(bundle), *options])
        assert ended.value.code == 2 and "Usage: dexml export" in capsys.readouterr().err


@needs("qdrant_client")
def test_a_qdrant_server_is_told_over_http(run, bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """No Qdrant server comes as a wheel: one that only listens shows what is sent, the key and the batches among it."""
    told: list[tuple[str, str, str | None, Any]] = []

    class Listener(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told.append((self.command, self.path, self.headers.get("api-key"), json.loads(body) if body else None))
            result: Any = {"exists": False} if self.path.endswith("/exists") else True
            if "/points" in self.path:
                result = {"count": 10} if self.path.endswith("/count") else {"operation_id": 0, "status": "completed"}
            reply = json.dumps({"result": result, "status": "ok", "time": 0}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        do_GET = do_PUT = do_POST = answer

        def log_message(self, *said: object) -> None:
            return

    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    monkeypatch.setattr("training.exporters.qdrant_collection.BATCH", 8)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # qdrant-client's on a key without TLS
            run("export", bundle, "--to", "qdrant", "--url", f"http://127.0.0.1:{server.server_port}", "--collection", "labels")
    finally:
        server.shutdown()
        server.server_close()
    assert {key for *_, key, _ in told} == {"secret"}
    made = next(body for method, path, _, body in told if (method, path.partition("?")[0]) == ("PUT", "/collections/labels"))
    assert made["vectors"] == {"size": 32, "distance": "Dot"} and made["metadata"]["labels"] == 10
    sent = [body["batch"] for _, path, _, body in told if path.startswith("/collections/labels/points?")]
    assert [len(batch["ids"]) for batch in sent] == [8, 2] and len(sent[0]["vectors"][0]) == 32
    assert sent[1]["payloads"][1] == {"id": "strings", "text": "splitting and joining of text strings"}
