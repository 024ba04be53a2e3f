"""What /openapi.json says: it is the committed file, and every status it names for a route is one that the route gives."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from serve import keys, spec

ROOT = Path(__file__).parents[2]
SPEC = spec.document()
OPERATIONS = {f"{method.upper()} {path}": found for path, item in SPEC["paths"].items() for method, found in item.items()}
WRITES = ("POST /v1/labels", "POST /v1/labels/delete", "DELETE /v1/labels/{label_id}")

# Statuses that no request of this file provokes, and what shows them.
SHOWN_ELSEWHERE = {
    408: "a body that does not arrive, for which the limit would have to be waited: test_intake.py",
    507: "a write to a full disk: test_status_table.py, and a version's: test_indexes.py",
}
VERSIONS = ("POST /v1/snapshots", "POST /v1/indexes/{version}/activate")
# A bug that a request can be made to meet is needed for a 500; where the model is not asked there is none to be made.
NO_BUG = {name for name in OPERATIONS if name.startswith("GET")}

EXAMPLES = {
    name: found["requestBody"]["content"]["application/json"] for name, found in OPERATIONS.items() if "requestBody" in found
}


def example_of(name: str) -> Any:
    schema = EXAMPLES[name]["schema"]["$ref"].rpartition("/")[2]
    return SPEC["components"]["schemas"][schema]["example"]


NOT_THERE = {
    "POST /v1/search": {"json": {"queries": ["a"], "index_version": "v000009"}},
    "POST /v1/embeddings": {"json": {"input": "a", "model": "other"}},
    "POST /v1/rerank": {"json": {"query": "a", "ids": ["nothing"]}},
    "POST /v2/rerank": {"json": {"query": "a", "ids": ["nothing"]}},
}
BROKEN = {
    "POST /v1/search": {"queries": ["broken"]},
    "POST /v1/embeddings": {"input": "broken"},
    "POST /v1/rerank": {"query": "broken", "documents": ["a"]},
    "POST /v2/rerank": {"query": "broken", "documents": ["a"]},
}


def test_the_committed_description_is_the_one_that_is_served(server):
    served = server.ask("GET", "/openapi.json").json
    assert json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8")) == served, "run `make openapi`"


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_described_whole(name: str):
    operation = OPERATIONS[name]
    assert operation["summary"] and operation["description"] and operation["tags"] and operation["operationId"]
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    refusals = {status: reply for status, reply in operation["responses"].items() if status >= "400"}
    for reply in refusals.values():
        assert reply["description"]
        assert reply["content"] == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    if "requestBody" in operation:
        schema = {**EXAMPLES[name]["schema"], "components": SPEC["components"]}
        jsonschema.validate(example_of(name), schema)


def test_an_operation_has_a_name_of_its_own():
    assert len({operation["operationId"] for operation in OPERATIONS.values()}) == len(OPERATIONS)


@pytest.mark.parametrize(
    "name", sorted(set(EXAMPLES) - {*WRITES, *VERSIONS})
)  # those need a bundle: test_labels.py, test_indexes.py
def test_an_example_is_answered_as_described(name: str, make_app):
    app = make_app()
    assert app.extensions["dexml"].worker.wait_until_loaded(10)
    method, path = name.split()
    reply = app.test_client().open(path, method=method, json=example_of(name))
    assert reply.status_code == 200
    described = OPERATIONS[name]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(reply.json, {**described, "components": SPEC["components"]})


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file of keys, and the text of one that may read."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    return path, keys.add(path, "reader", "read")


@pytest.fixture(scope="module")
def apps(stand_in, key_file, tmp_path_factory: pytest.TempPathFactory):
    """Applications in the states that refuse: loading, dead, busy for a second, full, and one that asks for keys."""
    from serve import create_app
    from serve.settings import Settings

    gate = threading.Event()

    def dead():
        raise ValueError("no")

    root = tmp_path_factory.mktemp("bundle")
    (root / "v000001").mkdir()  # is listed, though nothing can be made of it

    def broken() -> str:
        raise RuntimeError("no store is behind this")

    def make(opener: Any, **settings: Any) -> Any:
        if isinstance(opener, stand_in.StandIn):
            opener.store.root, opener.store.compact = root, broken
        return create_app(Settings(**{"writable": True, **settings}), opener)

    made = {
        "good": make(stand_in.StandIn()),
        "keyed": make(stand_in.StandIn(), keys=key_file[0]),
        "busy": make(stand_in.StandIn(), deadline_ms=20, max_deadline_ms=2000),
        "late": make(stand_in.StandIn(), deadline_ms=20, max_deadline_ms=20),
        "full": make(stand_in.StandIn(), max_inflight=1),
        "loading": make(lambda: gate.wait(60) and stand_in.StandIn()),
        "dead": make(dead),
    }
    for name, app in made.items():
        if name != "loading":
            assert app.extensions["dexml"].worker.wait_until_loaded(10)
    yield made
    gate.set()
    for app in made.values():
        app.extensions["dexml"].worker.stop(timeout=10)


def keep_busy(app: Any) -> threading.Thread:
    """Give the owner of the model something that takes half a second."""
    from serve.tickets import Ask

    worker = app.extensions["dexml"].worker
    thread = threading.Thread(target=worker.answer, args=(Ask(1, ("slow 500",)), time.monotonic() + 10))
    thread.start()
    while worker.inflight == 0:
        time.sleep(0.005)
    return thread


def during_another_change(app: Any, name: str) -> int:
    """Ask for a version while another change of version is under way."""
    worker, gate, begun = app.extensions["dexml"].worker, threading.Event(), threading.Event()
    other = threading.Thread(
        target=worker.upkeep.change, args=(worker.serving.store, lambda: begun.set() or str(gate.wait(10)))
    )
    other.start()
    assert begun.wait(10)
    try:
        return ask(app, name)
    finally:
        gate.set()
        other.join()


def ask(app: Any, name: str, **more: Any) -> int:
    method, path = name.split()
    given = more.pop("id", None)
    path = path.format(label_id=given or "numpy.sort", model_id=given or "stand-in", version=given or "v000001") + more.pop(
        "query", ""
    )
    if name in EXAMPLES and not {"json", "data"} & set(more):
        more["json"] = example_of(name)
    reply = app.test_client().open(path, method=method, **more)
    if reply.status_code >= 400:
        schema = {"$ref": "#/components/schemas/ProblemBody", "components": SPEC["components"]}
        jsonschema.validate(json.loads(reply.data), schema)
    return reply.status_code


def provoke(apps: dict[str, Any], reader: str, name: str, status: int) -> int:
    """Ask for an operation's status in the way that gives it, and return what came."""
    good = apps["good"]
    simple = {
        400: {"data": b"{", "content_type": "application/json"},
        413: {"data": b" " * 2_000_001, "content_type": "application/json"},
        415: {"data": b"{}", "content_type": "text/plain"},
        421: {"headers": {"Host": "evil.example"}},
        422: {"json": {"unknown": 1}} if name in EXAMPLES else {"query": "?limit=0"},
        404: NOT_THERE.get(name, {"id": "nothing"}),
        412: {"headers": {"If-Match": '"v000009"'}},
        500: {"json": BROKEN[name]} if name in BROKEN else {},
    }
    if status in simple:
        return ask(good, name, **simple[status])
    if status == 401:
        return ask(apps["keyed"], name)
    if status == 403:
        return ask(apps["keyed"], name, headers={"X-API-Key": reader})
    if status == 503:
        return ask(apps["dead" if name == "GET /livez" else "loading"], name)
    if status == 409 and name in VERSIONS:
        return during_another_change(good, name)
    app = apps[{429: "full", 504: "late", 409: "busy"}[status]]
    blocker = keep_busy(app)
    try:
        if status != 409:
            return ask(app, name)
        key = {"Idempotency-Key": name.replace(" ", ":")}
        first = threading.Thread(target=ask, args=(app, name), kwargs={"headers": key})
        first.start()
        while first.is_alive() and app.extensions["dexml"].worker.inflight < 2:
            time.sleep(0.005)
        again = ask(app, name, headers=key)
        first.join()
        return again
    finally:
        blocker.join()


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_status_of_an_operation_is_one_it_gives(name: str, apps, key_file):
    for status in map(int, OPERATIONS[name]["responses"]):
        if status == 200 or status in SHOWN_ELSEWHERE or (status == 500 and name in NO_BUG):
            continue
        assert provoke(apps, key_file[1], name, status) == status, status
