"""Slow and silent clients against a real server of three threads: they hold a socket each, and no thread for long."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from serve.intake import MOST_GATHERED, is_whole

ROOT = Path(__file__).parents[2]
HEAD = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"queries": ["sort an array"]}).encode()
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
STALLED = {
    "nothing": b"",
    "half a line": b"GET /livez HT",
    "half the headers": HEAD,
    "half a body": HEAD + LENGTH + BODY[:9],
    "half a chunked body": HEAD + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"que',
    "a body awaited": HEAD + b"Expect: 100-continue\r\n" + LENGTH,
    "half a long body": HEAD + b"Content-Length: 200000\r\n\r\n" + b" " * (MOST_GATHERED + 9),
}
TAKES_A_THREAD = {"a body awaited", "half a long body"}
PATIENCE_S = 1.0


@pytest.fixture(scope="module")
def narrow(running_servers):
    """A stand-in on three threads that waits for a request for a second."""
    program = ["tests/serve/stand_in.py", "0", "2", "threads=3", f"client_timeout_s={PATIENCE_S}"]
    with running_servers(program) as (server,):
        yield server


def opened(stack: ExitStack, server, count: int, sent: bytes) -> list[socket.socket]:
    sockets = [stack.enter_context(closing(socket.create_connection(server.address, timeout=8))) for _ in range(count)]
    for raw in sockets:
        raw.sendall(sent)
    return sockets


def rest(raw: socket.socket) -> bytes:
    return b"".join(iter(lambda: raw.recv(65_536), b""))


@pytest.mark.parametrize("kind", sorted(set(STALLED) - TAKES_A_THREAD))
def test_thirty_who_stall_hold_up_nobody(narrow, kind: str):
    with ExitStack() as stack:
        opened(stack, narrow, 30, STALLED[kind])
        time.sleep(0.05)
        start = time.monotonic()
        assert all(narrow.post(BODY).status == 200 for _ in range(5))
        assert time.monotonic() - start < PATIENCE_S / 2


@pytest.mark.parametrize("kind", STALLED)
def test_who_stalls_is_told_so_and_cut_off(narrow, kind: str):
    with ExitStack() as stack:
        start = time.monotonic()
        (raw,) = opened(stack, narrow, 1, STALLED[kind])
        answer = rest(raw)
        assert PATIENCE_S * 0.8 < time.monotonic() - start < PATIENCE_S + 4
        if kind == "nothing":
            assert answer == b""
            return
        head, _, body = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ") and b"application/problem+json" in head
        assert json.loads(body)["error"]["code"] == "request_timeout"


def test_a_slow_request_that_arrives_in_time_is_answered(narrow):
    whole = HEAD + LENGTH + BODY
    with ExitStack() as stack:
        (raw,) = opened(stack, narrow, 1, b"")
        for at in range(0, len(whole), 25):
            raw.sendall(whole[at : at + 25])
            time.sleep(0.05)
        assert raw.recv(65_536).startswith(b"HTTP/1.1 200 ")
        raw.sendall(whole + whole)  # on the same connection, two at once
        answers = b""
        while answers.count(b"HTTP/1.1 200 ") < 2:
            answers += raw.recv(65_536) or pytest.fail(f"only {answers!r}")


def test_chunks_in_pieces_and_bodies_longer_than_what_is_gathered(narrow):
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:])) + b"0\r\nX-Sum: 1\r\n\r\n"
    sent = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    with ExitStack() as stack:
        (raw,) = opened(stack, narrow, 1, sent[:-30])
        time.sleep(0.1)
        raw.sendall(sent[-30:])
        assert raw.recv(65_536).startswith(b"HTTP/1.1 200 ")
    assert narrow.post(BODY + b" " * 3 * MOST_GATHERED).status == 200
    assert narrow.post(BODY[:-1] + b", " + b" " * 3 * MOST_GATHERED).json["error"]["code"] == "malformed_json"


def test_who_stops_halfway_is_answered_at_once(narrow):
    with ExitStack() as stack:
        (raw,) = opened(stack, narrow, 1, STALLED["half a body"])
        raw.shutdown(socket.SHUT_WR)
        start = time.monotonic()
        assert b"ended before it was complete" in rest(raw) and time.monotonic() - start < PATIENCE_S / 2


def test_who_never_hangs_up_holds_up_nobody(narrow):
    """Gunicorn by itself waits two seconds for each on the thread that accepts all others."""
    with ExitStack() as stack:
        left_open = opened(stack, narrow, 10, b"GARBAGE\r\n\r\n")
        assert all(raw.recv(65_536).startswith(b"HTTP/1.1 400 ") for raw in left_open)
        start = time.monotonic()
        assert narrow.ask("GET", "/livez").status == 200 and time.monotonic() - start < 1
        assert all(rest(raw) == b"" for raw in left_open)
        time.sleep(0.1)


def test_few_files_are_no_end(tmp_path: Path):
    """With more connections than files allowed, those too many wait, and the worker lives."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400)); sys.path.insert(0, 'tests/serve')\n"
        "from stand_in import StandIn; from serve import wsgi; from serve.settings import Settings\n"
        "settings = Settings(port=0, threads=4, client_timeout_s=1)\n"
        "raise SystemExit(wsgi.run(settings, wsgi.listen(settings), StandIn))\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline().split("/ ")[0].rpartition(":")[2])
        with ExitStack() as stack:
            for _ in range(450):
                raw = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=20)))
                raw.sendall(b"GET /livez HT")
            last = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=20)))
            last.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert last.recv(65_536).startswith(b"HTTP/1.1 200 ")
    finally:
        process.terminate()
        assert process.wait(20) == 0
        process.stdout.close()


def test_those_who_said_nothing_do_not_hold_up_the_end(to_drain):
    server = next(to_drain)
    with ExitStack() as stack:
        opened(stack, server, 3, b"")
        start = time.monotonic()
        assert server.end() == 0 and time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("held", "whole"),
    [
        (b"", False),
        (b"GET / HTTP/1.1\r\nContent-Length: 3\r\n\r", False),
        (b"POST / HTTP/1.1\r\ncontent-LENGTH:3 \r\n\r\nab", False),
        (b"POST / HTTP/1.1\r\ncontent-LENGTH:3 \r\n\r\nabc", True),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nX: content-length: 9\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", False),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n", True),
        (b"A" * MOST_GATHERED, True),
    ],
)
def test_when_a_request_is_whole(held: bytes, whole: bool):
    assert is_whole(held) is whole
