"""What a full service refuses at once: work, cheaply and with all that a refusal says; nothing else."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest


@pytest.fixture
def full(make_app, stand_in):
    """An application of one place, which is taken; the client to ask it with."""
    retriever = stand_in.StandIn()
    app = make_app(retriever, max_inflight=1)
    assert app.extensions["dexml"].worker.wait_until_loaded(10)
    taken = threading.Thread(target=app.test_client().post, args=("/v1/search",), kwargs={"json": {"queries": ["slow 600"]}})
    taken.start()
    time.sleep(0.1)
    yield app
    taken.join()


def test_a_refusal_is_whole_though_nothing_was_read(full):
    reply = full.test_client().post("/v1/search", data=b"not JSON", headers={"X-Request-ID": "mine"})
    assert reply.status_code == 429 and reply.content_type == "application/problem+json"
    assert reply.json["error"]["code"] == "overloaded" and reply.json["instance"] == "/v1/search"
    assert reply.headers["X-Request-ID"] == reply.json["request_id"] == "mine" and int(reply.headers["Retry-After"]) >= 1
    other = full.test_client().get("/v1/nothing")
    missing = {name for name, _ in other.headers} - {name for name, _ in reply.headers} - {"Server-Timing"}
    assert missing == set()  # the security headers above all


@pytest.mark.parametrize("path", ["/v1/search?x=1", "/v1/labels", "/v1/labels/delete"])
def test_all_that_would_wait_is_refused(full, path):
    assert full.test_client().post(path, json={}).status_code == 429


def test_what_needs_no_place_is_answered(full):
    client = full.test_client()
    assert [client.get(path).status_code for path in ("/livez", "/readyz", "/v1/info", "/v1/labels?limit=0")] == [
        200,
        200,
        200,
        422,
    ]
    assert client.get("/v1/search").status_code == 405 and client.post("/v1/info").status_code == 405


def test_draining_comes_before_overload(full):
    full.extensions["dexml"].worker.draining = True
    reply = full.test_client().post("/v1/search", json={"queries": ["x"]})
    assert (reply.status_code, reply.json["error"]["code"]) == (503, "draining")


def test_an_unread_body_does_not_spoil_the_next_request_of_a_connection(running_servers):
    body = json.dumps({"queries": ["x" * 30_000]}).encode()
    head = (
        f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with running_servers(["tests/serve/stand_in.py", "0", "1"]) as (server,):
        blocker = threading.Thread(target=server.post, args=({"queries": ["slow 700"]},))
        assert server.ask("GET", "/readyz").status == 200
        blocker.start()
        time.sleep(0.2)
        with socket.create_connection(server.address, timeout=10) as connection, connection.makefile("rb") as read:
            for _ in range(3):
                connection.sendall(head.encode() + body)
                assert read.readline().startswith(b"HTTP/1.1 429")
                length = 0
                while (line := read.readline().strip().lower()) != b"":
                    length = int(line.split(b":")[1]) if line.startswith(b"content-length") else length
                assert json.loads(read.read(length))["status"] == 429
        blocker.join()


HEAD = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: mine\r\nContent-Length: 2\r\n"


def test_an_early_answer_is_whole(full):
    from serve.shedding import early

    service = full.extensions["dexml"]
    for more in (b"", b"Connection: keep-alive\r\n"):
        head, _, body = early(service, HEAD + more + b"\r\n{}").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n") and f"Content-Length: {len(body)}".encode() in head
        assert b"X-Request-ID: mine" in head and b"Retry-After: " in head and json.loads(body)["request_id"] == "mine"


@pytest.mark.parametrize(
    "request_",
    [
        HEAD + b"\r\n{",
        HEAD + b"\r\n{}POST /",
        HEAD + b"Content-Length: 3\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n{}",
        HEAD + b"Connection: close\r\n\r\n{}",
        HEAD + b"Expect: 100-continue\r\n\r\n{}",
        HEAD + b"X: a\r\n b\r\n\r\n{}",
        HEAD + b"X: a\nY: b\r\n\r\n{}",
        b"GET /v1/search HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/search HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/snapshots HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\n\r\n",
    ],
)
def test_whose_end_is_in_doubt_is_left_to_gunicorn(full, request_: bytes):
    from serve.shedding import early

    assert early(full.extensions["dexml"], request_) is None


def test_refusals_are_counted(full):
    full.test_client().post("/v1/search", json={})
    page = full.extensions["dexml"].metrics.page()[0].decode()
    assert 'dexml_http_requests_total{method="POST",route="/v1/search",status="429"} 1.0' in page
    assert 'dexml_rejected_total{reason="queue_full"} 1.0' in page
