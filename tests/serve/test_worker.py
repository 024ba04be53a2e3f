"""The one owner of the model: batches, limits, deadlines, loading, draining."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest


def search(app, text: str, **fields):
    return app.test_client().post("/v1/search", json={"queries": [text], **fields})


def together(app, asks: list[dict]):
    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(lambda ask: app.test_client().post("/v1/search", json=ask), asks))


def ready(app) -> None:
    assert app.extensions["dexml"].worker.wait_until_loaded(10)


def test_requests_that_wait_together_travel_together_and_get_their_own_answers(make_app, stand_in):
    retriever = stand_in.StandIn()
    app = make_app(retriever)
    ready(app)
    kinds = ("sort an array", "cluster points", "long words", "gibberish")
    texts = [f"{text} {number}" for number in range(8) for text in kinds]
    alone = [search(app, text).json["results"][0] for text in texts]
    retriever.batches.clear()
    blocker = threading.Thread(target=search, args=(app, "slow 300"))
    blocker.start()
    time.sleep(0.1)
    replies = together(app, [{"queries": [text]} for text in texts])
    blocker.join()
    for reply, expected in zip(replies, alone, strict=True):
        found = reply.json["results"][0]
        assert [label["id"] for label in found["labels"]] == [label["id"] for label in expected["labels"]]
        assert found["truncated"] == expected["truncated"] and found["known"] == expected["known"]
        for label, lone in zip(found["labels"], expected["labels"], strict=True):
            assert abs(label["score"] - lone["score"]) <= 1e-5 and abs(label["probability"] - lone["probability"]) <= 1e-5
    assert max(retriever.batches) == len(texts), retriever.batches


def test_requests_of_other_kinds_do_not_share_a_batch(make_app, stand_in):
    retriever = stand_in.StandIn()
    app = make_app(retriever)
    ready(app)
    retriever.batches.clear()  # of the warm-up
    asks = [{"queries": ["sort"], "top_k": k, "normalize": n} for k in (1, 3) for n in ("all", "topk", "none")]
    for ask, reply in zip(asks, together(app, asks), strict=True):
        assert reply.json["results"][0]["returned"] == ask["top_k"]
        assert reply.json["results"][0]["normalizer"]["kind"] == ask["normalize"]
    assert retriever.batches == [1] * 6


def test_a_batch_has_at_most_64_queries(make_app, stand_in):
    retriever = stand_in.StandIn()
    app = make_app(retriever)
    ready(app)
    retriever.batches.clear()
    replies = together(app, [{"queries": ["slow 50"]}, *[{"queries": ["sort"] * 40}] * 4])
    assert [reply.status_code for reply in replies] == [200] * 5
    assert max(retriever.batches) <= 64


def test_one_bad_request_harms_no_other(make_app):
    app = make_app()
    ready(app)
    blocker = threading.Thread(target=search, args=(app, "slow 200"))
    blocker.start()
    time.sleep(0.05)
    replies = together(app, [{"queries": ["broken"]}, *[{"queries": ["sort"]}] * 5])
    blocker.join()
    assert [reply.status_code for reply in replies] == [500] + [200] * 5


def test_a_full_queue_answers_429_at_once(make_app):
    app = make_app(max_inflight=3)
    ready(app)
    start = time.monotonic()
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: (search(app, "slow 600"), time.monotonic() - start), range(12)))
    refused = [(reply, seconds) for reply, seconds in replies if reply.status_code == 429]
    assert len(refused) == 9 and all(seconds < 0.5 for _, seconds in refused)
    for reply, _ in refused:
        assert int(reply.headers["Retry-After"]) >= 1 and reply.json["error"]["code"] == "overloaded"
        assert reply.json["error"]["type"] == "rate_limit_error"
    assert app.extensions["dexml"].worker.inflight == 0
    assert search(app, "sort").status_code == 200


def test_what_expires_in_the_queue_is_never_encoded(make_app, stand_in):
    retriever = stand_in.StandIn()
    app = make_app(retriever)
    ready(app)
    blocker = threading.Thread(target=search, args=(app, "slow 500"))
    blocker.start()
    time.sleep(0.1)
    start = time.monotonic()
    reply = search(app, "nobody waits for this", timeout_ms=50)
    assert reply.status_code == 504 and reply.json["error"]["code"] == "deadline_exceeded"
    assert time.monotonic() - start < 0.35, "before the blocker's end"
    blocker.join()
    assert search(app, "sort").status_code == 200
    assert "nobody waits for this" not in retriever.seen and app.extensions["dexml"].worker.inflight == 0


def test_probes_and_searches_while_loading(make_app, stand_in):
    gate = threading.Event()

    def slow_to_open():
        gate.wait(10)
        return stand_in.StandIn()

    app = make_app(slow_to_open)
    client = app.test_client()
    assert client.get("/livez").status_code == 200
    for reply in (client.get("/readyz"), client.get("/health"), client.get("/v1/info"), search(app, "sort")):
        assert reply.status_code == 503 and reply.json["error"]["code"] == "not_ready" and reply.headers["Retry-After"]
    gate.set()
    ready(app)
    assert client.get("/readyz").status_code == 200 and search(app, "sort").status_code == 200


def test_when_the_model_cannot_be_loaded_nothing_is_alive(make_app, stand_in):
    app = make_app(lambda: stand_in.StandIn(failure=ValueError("no")))
    ready(app)
    worker = app.extensions["dexml"].worker
    worker.stop()
    assert isinstance(worker.failure, ValueError)
    assert app.test_client().get("/livez").status_code == 503


def test_draining_finishes_what_is_queued_and_refuses_the_rest(make_app):
    app = make_app()
    ready(app)
    worker = app.extensions["dexml"].worker
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(search, app, "slow 150") for _ in range(4)]
        time.sleep(0.1)
        worker.stop()
        assert [future.result().status_code for future in waiting] == [200] * 4
    for reply in (search(app, "sort"), app.test_client().get("/readyz")):
        assert reply.status_code == 503 and reply.json["error"]["code"] == "draining"


def test_a_lone_request_does_not_wait_for_company(make_app):
    app = make_app(batch_wait_ms=1000)
    ready(app)
    start = time.monotonic()
    for _ in range(3):
        assert search(app, "sort").status_code == 200
    assert time.monotonic() - start < 0.9


def test_settings_refuse_what_makes_no_sense():
    from pydantic import ValidationError

    from serve.settings import Settings

    hosts = ("a.example:80", "*.example", "http://a.example", "", "a b", "a.example/x", "[::1]:8", "::1", "-a", "ü.example")
    for wrong in ({"max_inflight": 0}, {"port": 70_000}, {"unknown": 1}, *({"allowed_hosts": (host,)} for host in hosts)):
        with pytest.raises(ValidationError):
            Settings(**wrong)
