"""Labels over HTTP, with a real process over a real bundle: durable before the answer, and seen by the next search."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from index.store import Store


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("written") / "bundle"))


@pytest.fixture(scope="module")
def writable(bundle: Path, running_servers):
    with running_servers(["-m", "dexml", "serve", str(bundle), "--port", "0", "--no-admin", "--writable"]) as (server,):
        yield server


def best(server, text: str) -> str:
    return server.post({"queries": [text], "top_k": 1}).json["results"][0]["labels"][0]["id"]


def problem(reply, status: int, code: str, pointer: str | None = None) -> None:
    assert (reply.status, reply.json["error"]["code"]) == (status, code), reply.body
    assert reply.headers["Content-Type"] == "application/problem+json"
    if pointer is not None:
        assert reply.json["errors"][0]["pointer"] == pointer


def test_a_label_is_added_found_replaced_and_deleted(writable, bundle: Path):
    name = "a/b ü?#"
    said = writable.post({"labels": [{"id": name, "text": "filtering matrices by regression"}]}, "/v1/labels")
    assert said.status == 200 and said.json["upserted"] == 1 and said.json["durable"] and said.json["visible"]
    assert best(writable, "filtering matrices by regression") == name
    assert name in Store.open(bundle).live.labels, "it is on disk when the answer comes"
    assert writable.ask("GET", f"/v1/labels/{quote(name, safe='')}").json == {
        "id": name,
        "text": "filtering matrices by regression",
    }
    again = writable.post({"labels": [{"id": name, "text": "points"}]}, "/v1/labels").json
    assert (again["replaced"], again["labels"], again["sequence"]) == (1, said.json["labels"], said.json["sequence"] + 1)
    gone = writable.ask("DELETE", f"/v1/labels/{quote(name, safe='')}")
    assert gone.status == 200 and gone.json["deleted"] == 1
    assert best(writable, "filtering matrices by regression") != name
    problem(writable.ask("GET", f"/v1/labels/{quote(name, safe='')}"), 404, "not_found")
    problem(writable.ask("DELETE", f"/v1/labels/{quote(name, safe='')}"), 404, "not_found")
    searched = writable.post({"queries": ["points"]}).json
    assert searched["index_version"] == gone.json["index_version"] == f"v000001+{gone.json['sequence']}"
    assert writable.post({"queries": ["points"], "index_version": "v000001"}).status == 200


def test_an_embedding_is_a_label_as_well_and_many_go_at_once(writable):
    rows = np.random.default_rng(0).standard_normal((3, 32))
    labels = [{"id": f"row {number}", "embedding": row.tolist()} for number, row in enumerate(rows)]
    assert writable.post({"labels": labels}, "/v1/labels").json["upserted"] == 3
    found = writable.post({"embeddings": rows.tolist(), "top_k": 1}).json["results"]
    assert [result["labels"][0]["id"] for result in found] == ["row 0", "row 1", "row 2"]
    assert found[0]["labels"][0]["score"] == pytest.approx(1, abs=1e-5)
    gone = writable.post({"ids": ["row 0", "row 1", "row 2", "never there"]}, "/v1/labels/delete").json
    assert gone["deleted"] == 3
    assert not {"row 0", "row 1", "row 2"} & {label["id"] for label in writable.ask("GET", "/v1/labels").json["labels"]}


def test_labels_are_listed_page_by_page(writable):
    whole, cursor = [], ""
    while cursor is not None:
        page = writable.ask("GET", f"/v1/labels?limit=3{cursor and f'&cursor={cursor}'}").json
        assert len(page["labels"]) <= 3
        whole += page["labels"]
        cursor = page["next"]
    assert whole == writable.ask("GET", "/v1/labels?limit=1000").json["labels"] and len(whole) >= 9
    for query in (
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=-1",
        "limit=" + "9" * 40,
        "cursor=x",
        "cursor=v000009-1",
        "cursr=1",
    ):
        problem(writable.ask("GET", f"/v1/labels?{query}"), 422, "schema")


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer"),
    [
        ({"labels": []}, 422, "empty", "/labels"),
        ({"labels": [{"id": "a"}]}, 422, "schema", "/labels/0"),
        ({"labels": [{"id": "", "text": "x"}]}, 422, "empty", "/labels/0/id"),
        ({"labels": [{"id": "a\0", "text": "x"}]}, 422, "invalid_text", "/labels/0/id"),
        ({"labels": [{"id": "é" * 200, "text": "x"}]}, 422, "text_too_long", "/labels/0/id"),
        ({"labels": [{"id": "a", "text": " "}]}, 422, "empty", "/labels/0/text"),
        ({"labels": [{"id": "a", "text": "sorting"}, {"id": "b", "text": "日本語"}]}, 422, "schema", "/labels/1/text"),
        ({"labels": [{"id": "a", "embedding": [1.0]}]}, 422, "dimension_mismatch", "/labels/0/embedding"),
        ({"labels": [{"id": " ", "embedding": [1.0] * 32}]}, 422, "empty", "/labels/0"),
        ({"labels": [{"id": "a", "embedding": [0.0] * 32}]}, 422, "zero_vector", "/labels/0/embedding"),
        ({"labels": [{"id": "a", "text": "x", "more": 1}]}, 422, "schema", "/labels/0/more"),
        ({"labels": [{"id": "a", "text": "x"}] * 2}, 422, "schema", "/labels"),
        ({"labels": [{"id": str(number), "text": "x"} for number in range(1001)]}, 413, "batch_too_large", "/labels"),
        ({"labels": [{"id": "svd", "text": "x"}], "if_exists": "error"}, 409, "conflict", "/labels/0/id"),
    ],
)
def test_bad_input_has_its_status_and_changes_nothing(writable, body: object, status: int, code: str, pointer: str):
    before = writable.ask("GET", "/v1/labels?limit=1000").json
    problem(writable.post(body, "/v1/labels"), status, code, pointer)
    assert writable.ask("GET", "/v1/labels?limit=1000").json == before


def test_a_repeated_request_is_done_once(writable):
    body, key = {"labels": [{"id": "once", "text": "sorting points"}]}, {"Idempotency-Key": "k-1"}
    first = writable.post(body, "/v1/labels", **key)
    assert first.status == 200 and first.json["replaced"] == 0
    again = writable.post(body, "/v1/labels", **key)
    assert (again.status, again.json, again.headers["ETag"]) == (200, first.json, first.headers["ETag"])
    assert writable.ask("GET", "/v1/info").json["index_version"] == first.json["index_version"], "nothing was written again"
    problem(writable.post({"labels": [{"id": "once", "text": "else"}]}, "/v1/labels", **key), 422, "key_reused")
    problem(writable.post({"ids": ["once"]}, "/v1/labels/delete", **key), 422, "key_reused")
    failed = {"labels": [{"id": "svd", "text": "x"}], "if_exists": "error"}
    problem(writable.post(failed, "/v1/labels", **{"Idempotency-Key": "k-2"}), 409, "conflict")
    assert writable.post(body, "/v1/labels", **{"Idempotency-Key": "k-2"}).status == 200, "what failed is not remembered"


def test_a_write_on_condition_that_nothing_has_changed(writable):
    tag = writable.ask("GET", "/v1/labels?limit=1").headers["ETag"]
    written = writable.post({"labels": [{"id": "mine", "text": "points"}]}, "/v1/labels", **{"If-Match": tag})
    assert written.status == 200 and written.headers["ETag"] == f'"{written.json["index_version"]}"' != tag
    problem(
        writable.post({"labels": [{"id": "theirs", "text": "x"}]}, "/v1/labels", **{"If-Match": tag}),
        412,
        "precondition_failed",
    )
    problem(writable.ask("GET", "/v1/labels/theirs"), 404, "not_found")
    assert writable.post({"labels": [{"id": "theirs", "text": "points"}]}, "/v1/labels", **{"If-Match": "*"}).status == 200


def test_the_last_keys_are_remembered():
    from serve.repeated import Repeated

    made: list[int] = []
    repeated = Repeated(most=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        repeated.answer(key, "same", lambda: {"made": made.append(1)})
    assert len(made) == 4, "a, b, c, and b again, which was used longest ago"


def test_two_cannot_write(writable, bundle: Path, running_servers):
    with running_servers(["-m", "dexml", "serve", str(bundle), "--port", "0", "--admin-port", "0", "--writable"]) as (second,):
        assert second.process.wait(60) == 2
        assert "is being written by another process" in second.process.stderr.read()


def test_without_writable_nothing_is_written(real):
    problem(real.post({"labels": [{"id": "a", "text": "x"}]}, "/v1/labels"), 403, "forbidden")
    problem(real.post({"ids": ["svd"]}, "/v1/labels/delete"), 403, "forbidden")
    problem(real.ask("DELETE", "/v1/labels/svd"), 403, "forbidden")
    assert real.ask("GET", "/v1/labels/svd").json["id"] == "svd"
    assert real.ask("GET", "/v1/labels").status == 200


def test_a_killed_service_has_what_it_acknowledged(tiny_bundle: Path, tmp_path: Path, running_servers):
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    command = ["-m", "dexml", "serve", str(bundle), "--port", "0", "--admin-port", "0", "--writable"]
    with running_servers(command) as (server,):
        for number in range(5):
            assert server.post({"labels": [{"id": f"n{number}", "text": "sorting points"}]}, "/v1/labels").status == 200
        server.process.send_signal(signal.SIGKILL)  # gunicorn's master; its worker sees that, and goes
        server.process.wait(10)
    with running_servers(command) as (server,):
        listed = {label["id"] for label in server.ask("GET", "/v1/labels").json["labels"]}
        assert {f"n{number}" for number in range(5)} <= listed
        assert json.loads(server.ask("GET", "/v1/info").body)["index_version"] == "v000001+5"
