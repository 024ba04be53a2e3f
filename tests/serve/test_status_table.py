"""SERVING §1.2's status table, row by row: what is asked, and the status, the code and the headers of the answer.

`TABLE` is to be read beside the design. Each row runs against processes (the stand-in, and a real bundle that takes writes),
or against an application in this process where it needs one that is full, loading or draining.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serve.errors import CODES

JSON = {"Content-Type": "application/json"}
GOOD = {"queries": ["sort an array"]}
READER = "dexml_a-key-that-may-read"
CHALLENGED = 'Bearer realm="dexml", error="invalid_token"'
LABEL = {"labels": [{"id": "new", "text": "sorting"}]}


@dataclass(frozen=True)
class Row:
    """A request, and what it gets; `body` is JSON, bytes, or what returns chunks of bytes."""

    status: int
    code: str
    body: Any = None
    pointer: str | None = None
    path: str = "/v1/search"
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: JSON)
    gets: dict[str, str] = field(default_factory=dict)  # headers of the answer
    of: str = "server"  # or a fixture below


def rows(status: int, code: str, *bodies: Any, **more: Any) -> list[Row]:
    return [Row(status, code, body, **more) for body in bodies]


def pointed(status: int, code: str, *pairs: tuple[Any, str], **more: Any) -> list[Row]:
    return [Row(status, code, body, pointer, **more) for body, pointer in pairs]


def get(status: int, code: str, *paths: str, **more: Any) -> list[Row]:
    return [
        Row(status, code, path=path, method=more.get("method", "GET"), headers={}, gets=more.get("gets", {})) for path in paths
    ]


TABLE: dict[str, list[Row]] = {
    "body is not JSON, bad UTF-8, truncated, empty": [
        *rows(400, "malformed_json", b"", b"{", b'{"queries": ["a"]} x', b"\xff\xfe", b'{"queries": ["\xc3\x28"]}'),
        *rows(400, "malformed_json", b'{"queries": ["a\x00b"]}', b'\xef\xbb\xbf{"queries": ["a"]}'),
        *(Row(400, "malformed_json", b"{", path=path) for path in ("/v1/embeddings", "/v1/rerank", "/v1/labels")),
    ],
    "NaN, Infinity, 1e999 anywhere": rows(
        *(400, "non_finite_number", b'{"queries": ["a"], "min_score": NaN}'),
        *(b'{"queries": ["a"], "min_score": -Infinity}', b'{"embeddings": [[1e999]]}'),
    ),
    "duplicate key": rows(400, "duplicate_key", b'{"queries": ["a"], "queries": ["b"]}'),
    "nesting deeper than 32": rows(
        *(400, "too_deep", b'{"queries": ' + b"[" * 40 + b"]" * 40 + b"}", b"[" * 20_000),
        b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    ),
    "integer longer than 30 digits": rows(
        *(400, "number_too_long", b'{"queries": ["a"], "top_k": ' + b"1" * 31 + b"}"),
        b'{"queries": ["a"], "top_k": ' + b"9" * 5000 + b"}",
    ),
    "unknown field, wrong type, bool for int, both or neither of queries and embeddings": [
        *pointed(422, "schema", ([], ""), ("{}", ""), ({}, ""), ({"queries": ["a"], "embeddings": [[1.0] * 64]}, "")),
        *pointed(422, "schema", ({"queries": "a"}, "/queries"), ({"queries": [1]}, "/queries/0")),
        *pointed(422, "schema", *(({**GOOD, "top_k": wrong}, "/top_k") for wrong in (True, "5", 1.5))),
        *pointed(422, "schema", ({**GOOD, "top": 3}, "/top"), ({**GOOD, "normalize": "softmax"}, "/normalize")),
        *pointed(422, "schema", ({**GOOD, "include": ["embedding"]}, "/include/0")),
        *pointed(422, "schema", *(({"embeddings": [[wrong] * 64]}, "/embeddings/0/0") for wrong in ("1", True))),
        *pointed(422, "schema", ({"input": [1, 2]}, "/input"), path="/v1/embeddings"),
        *pointed(422, "schema", ({"query": "a", "documents": ["a"], "ids": ["a"]}, ""), path="/v1/rerank"),
        *pointed(422, "schema", ({"labels": [{"id": "a"}]}, "/labels/0"), path="/v1/labels"),
    ],
    "empty list, empty or blank string": [
        *pointed(422, "empty", ({"queries": []}, "/queries"), ({"embeddings": []}, "/embeddings")),
        *pointed(422, "empty", ({"queries": [""]}, "/queries/0"), ({"queries": ["a", " \t\n"]}, "/queries/1")),
        *pointed(422, "empty", *(({"queries": [blank]}, "/queries/0") for blank in ("\u200b", " \u00ad\u2060\ufeff\u3000"))),
        *pointed(422, "empty", ({**GOOD, "exclude_ids": [""]}, "/exclude_ids/0")),
    ],
    "NUL in text or id; lone surrogate": [
        *pointed(422, "invalid_text", ({"queries": ["a\0b"]}, "/queries/0"), ({"queries": ["a\ud800"]}, "/queries/0")),
        *pointed(422, "invalid_text", ({**GOOD, "exclude_ids": ["a\nb"]}, "/exclude_ids/0")),
        *pointed(422, "invalid_text", ({**GOOD, "exclude_ids": ["a", "\ud800"]}, "/exclude_ids/1")),
        *pointed(422, "invalid_text", ({"labels": [{"id": "a\0", "text": "x"}]}, "/labels/0/id"), path="/v1/labels"),
    ],
    "text longer than 32 768 characters, id than 256 bytes": pointed(
        *(422, "text_too_long", ({"queries": ["a" * 32_769]}, "/queries/0")),
        ({**GOOD, "exclude_ids": ["ü" * 129]}, "/exclude_ids/0"),
    ),
    "tokens beyond the model's maximum with truncate: false": pointed(
        422, "too_many_tokens", ({"queries": ["long text"], "truncate": False}, "/queries/0")
    ),
    "top_k < 1 or > 1000; candidates < top_k or > 2048": [
        *pointed(422, "top_k_out_of_range", *(({**GOOD, "top_k": wrong}, "/top_k") for wrong in (0, -1, 1001))),
        *pointed(422, "candidates_out_of_range", ({**GOOD, "candidates": 2049}, "/candidates")),
        *pointed(422, "candidates_out_of_range", ({**GOOD, "top_k": 10, "candidates": 9}, "")),
    ],
    "temperature <= 0 or > 100": pointed(
        422, "temperature_out_of_range", *(({**GOOD, "temperature": wrong}, "/temperature") for wrong in (0, -1.0, 101))
    ),
    "timeout_ms out of range": pointed(422, "timeout_out_of_range", ({**GOOD, "timeout_ms": 30_001}, "/timeout_ms")),
    "embedding of the wrong dimension, or of norm zero": [
        *pointed(422, "dimension_mismatch", ({"embeddings": [[1.0] * 63]}, "/embeddings/0")),
        *pointed(422, "zero_vector", ({"embeddings": [[1.0] * 64, [0.0] * 64]}, "/embeddings/1")),
        *pointed(422, "dimension_mismatch", ({"input": "a", "dimensions": 63}, "/dimensions"), path="/v1/embeddings"),
    ],
    "more than 64 queries, 2048 inputs, 1000 labels": [
        *pointed(413, "batch_too_large", ({"queries": ["a"] * 65}, "/queries")),
        *pointed(413, "batch_too_large", ({"input": ["a"] * 2049}, "/input"), path="/v1/embeddings"),
        *pointed(413, "batch_too_large", ({"ids": [f"{n}" for n in range(1001)]}, "/ids"), path="/v1/labels/delete"),
    ],
    "body > 2 MB, with or without Content-Length": [
        *rows(413, "body_too_large", {"queries": ["a" * 2_000_001]}),
        *rows(413, "body_too_large", lambda: (b" " * 100_000 for _ in range(21))),
    ],
    "Content-Type not JSON; any Content-Encoding": [
        Row(415, "unsupported_media_type", GOOD, headers=headers)
        for headers in (
            *({"Content-Type": f"{kind}"} for kind in ("text/plain", "application/x-www-form-urlencoded")),
            *({}, {"Content-Type": "application/json; charset=latin-1"}, {**JSON, "Content-Encoding": "gzip"}),
        )
    ],
    "diversity out of range, or of too many": [
        *pointed(422, "diversity_out_of_range", *(({**GOOD, "diversity": wrong}, "/diversity") for wrong in (0, -0.5, 1001))),
        *pointed(422, "schema", ({**GOOD, "diversity": True}, "/diversity")),
        *pointed(422, "candidates_out_of_range", ({**GOOD, "diversity": 0.5, "candidates": 513}, "")),
        *pointed(422, "candidates_out_of_range", ({**GOOD, "diversity": 0.5, "top_k": 512, "exclude_ids": ["b", "b"]}, "")),
    ],
    "why, where no training queries are kept": rows(422, "why_unavailable", {**GOOD, "include": ["why"]}),
    "calibrated probabilities, where the bundle has none": [
        *rows(422, "calibration_unavailable", {**GOOD, "normalize": "calibrated"}),
        *rows(422, "calibration_unavailable", {**GOOD, "normalize": "calibrated", "min_precision": 0.5}),
        *pointed(422, "precision_out_of_range", *(({**GOOD, "min_precision": w}, "/min_precision") for w in (-0.1, 1.5))),
    ],
    "no or wrong key": [
        *rows(401, "unauthenticated", GOOD, of="keyed", gets={"WWW-Authenticate": 'Bearer realm="dexml"'}),
        *(
            Row(401, "unauthenticated", GOOD, of="keyed", headers={**JSON, **wrong}, gets={"WWW-Authenticate": CHALLENGED})
            for wrong in ({"Authorization": "Bearer nonsense"}, {"X-API-Key": READER[:-1]})
        ),
    ],
    "valid key, missing role": rows(
        *(403, "forbidden", LABEL), path="/v1/labels", of="keyed", headers={**JSON, "Authorization": f"Bearer {READER}"}
    ),
    "writes where the service takes none": rows(403, "forbidden", LABEL, path="/v1/labels"),
    "unknown path, label, version, model": [
        *get(404, "not_found", "/nothing", "/v1/search/", "/v1//search", "/v1", "/static/../api.py", "/static/nothing.js"),
        *get(404, "not_found", "/v1/labels/nothing", "/v1/models/gpt-4o", "/docs/nothing.js", "/docs/../spec.py"),
        *rows(404, "not_found", {**GOOD, "index_version": "v000000009"}),
        *rows(404, "not_found", {"input": "a", "model": "gpt-4o"}, path="/v1/embeddings"),
        *rows(404, "not_found", {"query": "a", "ids": ["nothing"]}, path="/v1/rerank"),
    ],
    "wrong method": [
        *get(405, "method_not_allowed", "/v1/search", "/v1/embeddings", "/v2/rerank", gets={"Allow": "OPTIONS, POST"}),
        *get(405, "method_not_allowed", "/v1/info", "/docs", method="DELETE", gets={"Allow": "GET, HEAD, OPTIONS"}),
    ],
    "label exists with if_exists: error": pointed(
        409,
        "conflict",
        ({"labels": [{"id": "svd", "text": "x"}], "if_exists": "error"}, "/labels/0/id"),
        **{"path": "/v1/labels", "of": "writable"},
    ),
    "If-Match mismatch": [
        Row(412, "precondition_failed", LABEL, path="/v1/labels", of="writable", headers={**JSON, "If-Match": tag})
        for tag in ('"v000001+99"', 'W/"v000001"')
    ],
    "Idempotency-Key of another request, and one that is none": [
        Row(422, "key_reused", LABEL, path="/v1/labels", of="writable", headers={**JSON, "Idempotency-Key": "taken"}),
        Row(422, "schema", LABEL, path="/v1/labels", of="writable", headers={**JSON, "Idempotency-Key": "no\tkey"}),
    ],
    "another host's name": [
        Row(421, "forbidden_host", method="GET", path="/v1/info", headers={"Host": "evil.example"}),
        Row(421, "forbidden_host", GOOD, headers={**JSON, "Host": "evil.example"}),
    ],
    "queue full": rows(429, "overloaded", GOOD, of="full", gets={"Retry-After": "1"}),
    "loading": rows(503, "not_ready", GOOD, of="loading", gets={"Retry-After": "1"}),
    "draining": rows(503, "draining", GOOD, of="draining", gets={"Retry-After": "1"}),
    "shard down and allow_partial false": rows(503, "shard_unavailable", GOOD, of="shard_down", gets={"Retry-After": "1"}),
    "allow_partial where training queries are heard": pointed(
        422, "partial_unavailable", ({**GOOD, "allow_partial": True}, "/allow_partial"), of="shard_down"
    ),
    "deadline passed": rows(504, "deadline_exceeded", {"queries": ["slow 400"], "timeout_ms": 50}),
    "disk full on a write": rows(507, "insufficient_storage", LABEL, path="/v1/labels", of="disk_full"),
    "bug": [
        *rows(500, "internal", {"queries": ["broken"]}),
        *rows(500, "internal", {"input": "broken"}, path="/v1/embeddings"),
        *rows(500, "internal", {"query": "a", "documents": ["broken"]}, path="/v1/rerank"),
    ],
}

# Codes that other tests have: gunicorn's own (test_refusals.py), a client that stalls (test_intake.py), an index that is not
# exact (test_search.py), and versions that cannot answer (test_indexes.py).
ELSEWHERE = {"bad_request", "uri_too_long", "headers_too_large", "not_implemented"}
ELSEWHERE |= {"request_timeout", "exact_unavailable", "version_unusable"}


@pytest.fixture(scope="module")
def writable(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, running_servers):
    bundle = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("table") / "bundle")
    with running_servers(["-m", "dexml", "serve", str(bundle), "--port", "0", "--writable"]) as (server,):
        taken = server.post({"ids": ["nobody"]}, "/v1/labels/delete", **{"Idempotency-Key": "taken"})
        assert taken.status == 200
        yield server


class InProcess:
    """An application in this process, asked as a process is."""

    def __init__(self, app: Any):
        self.app = app
        self.worker = app.extensions["dexml"].worker

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        reply = self.app.test_client().open(path, method=method, data=body, headers=headers)
        return Reply(reply.status_code, reply.headers, reply.data)


@dataclass
class Reply:
    status: int
    headers: Any
    body: bytes


@pytest.fixture
def keyed(make_app, tmp_path: Path) -> InProcess:
    digest = hashlib.sha256(READER.encode()).hexdigest()
    key = {"name": "reader", "role": "read", "sha256": digest, "created": "2026-01-01T00:00:00+00:00"}
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [key]}))
    app = InProcess(make_app(keys=file, writable=True))
    assert app.worker.wait_until_loaded(10)
    return app


@pytest.fixture
def full(make_app) -> Iterator[InProcess]:
    app = InProcess(make_app(max_inflight=1))
    assert app.worker.wait_until_loaded(10)
    blocker = threading.Thread(target=app.ask, args=("POST", "/v1/search", json.dumps({"queries": ["slow 500"]}), JSON))
    blocker.start()
    while app.worker.inflight == 0:
        time.sleep(0.01)
    yield app
    blocker.join()


@pytest.fixture
def loading(make_app, stand_in) -> Iterator[InProcess]:
    gate = threading.Event()
    yield InProcess(make_app(lambda: gate.wait(10) and stand_in.StandIn()))
    gate.set()


@pytest.fixture
def draining(make_app) -> InProcess:
    app = InProcess(make_app())
    assert app.worker.wait_until_loaded(10)
    app.worker.stop()
    return app


@pytest.fixture
def shard_down(make_app, stand_in) -> InProcess:
    """What a service says; what shards do is in tests/index/shards."""
    from index.shards import ShardsMissing

    class OneShardLess(stand_in.StandIn):
        def __init__(self) -> None:
            super().__init__()
            self.divisible = False

        def search(self, texts: list[str], k: int, **how: Any) -> Any:
            if "warm up" in texts:
                return super().search(texts, k, **how)
            raise ShardsMissing([3])

    app = InProcess(make_app(OneShardLess))
    app.worker.wait_until_loaded(10)
    return app


@pytest.fixture
def disk_full(make_app, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """A disk cannot be filled from here (tests/dexml shows a log on one): the write of the log fails as it would."""
    from dexml.label_log import LabelLog
    from index.retriever import Retriever

    def append(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    app = InProcess(
        make_app(lambda: Retriever.open(Path(shutil.copytree(tiny_bundle, tmp_path / "b")), writable=True), writable=True)
    )
    assert app.worker.wait_until_loaded(60)
    monkeypatch.setattr(LabelLog, "append", append)
    return app


def check(reply: Any, row: Row) -> None:
    assert reply.status == row.status, reply.body
    assert reply.headers["Content-Type"] == "application/problem+json"
    problem = json.loads(reply.body)
    assert problem["status"] == row.status and problem["error"]["code"] == row.code and problem["type"].endswith(row.code)
    assert set(problem) == {"type", "title", "status", "detail", "instance", "request_id", "errors", "error"}
    assert set(problem["error"]) == {"message", "type", "param", "code"}
    assert problem["detail"] == problem["error"]["message"] != "" and problem["request_id"] == reply.headers["X-Request-ID"]
    assert b"secret" not in reply.body and b"Traceback" not in reply.body and b"<" not in reply.body
    if row.pointer is not None:
        assert (problem["errors"][0]["pointer"], problem["errors"][0]["code"]) == (row.pointer, row.code)
    for name, value in row.gets.items():
        assert reply.headers[name] == value


@pytest.mark.parametrize("words", TABLE)
def test_the_status_table(words: str, request: pytest.FixtureRequest):
    for row in TABLE[words]:
        body = row.body() if callable(row.body) else row.body
        raw = body if body is None or isinstance(body, bytes | Iterator) else json.dumps(body).encode()
        check(request.getfixturevalue(row.of).ask(row.method, row.path, raw, row.headers), row)


def test_every_code_is_in_a_row():
    told = {row.code for found in TABLE.values() for row in found}
    assert told | ELSEWHERE == set(CODES) and not told & ELSEWHERE
    for found in TABLE.values():
        assert all(CODES[row.code][0] == row.status for row in found)


def test_the_processes_are_still_there(server, writable):
    assert server.ask("GET", "/livez").status == 200 and server.post(GOOD).status == 200
    assert writable.post({"ids": ["nobody"]}, "/v1/labels/delete").status == 200
