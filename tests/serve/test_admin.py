"""The second listener: probes and metrics that answer while the public one cannot."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small(running_servers):
    """A stand-in of two requests at once, on three threads, with an admin listener."""
    with running_servers(["tests/serve/stand_in.py", "0", "2", "threads=3", "admin_port=0"]) as (server,):
        yield server


def problem(reply, status: int, code: str) -> None:
    assert (reply.status, reply.json["error"]["code"]) == (status, code), reply.body
    assert reply.headers["Content-Type"] == "application/problem+json"


def test_it_answers_probes_and_metrics_and_nothing_else(small):
    assert small.probe("/livez").json == {"status": "alive"} and small.probe("/readyz?x=1").json == {"status": "ready"}
    metrics = small.probe("/metrics")
    assert metrics.status == 200 and b"dexml_http_requests_total" in metrics.body
    assert metrics.headers["Cache-Control"] == "no-store" and metrics.headers["Server"].strip() == "dexml"
    head = small.probe("/livez", method="HEAD")
    assert head.status == 200 and head.body == b"" and int(head.headers["Content-Length"]) > 0
    for path in ("/", "/v1/info", "/livez/", "/%6civez", "/metrics/../v1/labels"):
        problem(small.probe(path), 404, "not_found")
    refused = small.probe("/livez", method="POST")
    problem(refused, 405, "method_not_allowed")
    assert refused.headers["Allow"] == "GET, HEAD"
    assert small.ask("GET", "/metrics").status == 200, "the public port has them too"


def test_a_foreign_host_is_refused(small):
    problem(small.probe("/metrics", Host="rebound.example"), 421, "forbidden_host")
    assert small.probe("/metrics", Host="localhost:1").status == 200


SENT = {
    "no version": b"GET\r\n\r\n",
    "a wrong one": b"<b>\x1b[31m / HTTP/9.9\r\n\r\n",
    "too long": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\r\n\r\n",
}


@pytest.mark.parametrize("kind", SENT)
def test_what_is_no_http_gets_no_html(small, kind: str):
    with socket.create_connection(small.admin, timeout=8) as raw:
        raw.sendall(SENT[kind])
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert b"urn:dexml:error" in answer and b"<" not in answer and b"\x1b" not in answer
    assert small.probe("/livez").status == 200


def test_it_answers_at_once_while_every_public_thread_is_taken(small):
    stalled = [socket.create_connection(small.address, timeout=5) for _ in range(3)]
    try:
        for raw in stalled:  # who waits for 100 Continue gets a thread, and the body never comes
            raw.sendall(
                b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
                b"Expect: 100-continue\r\n\r\n{"
            )
        time.sleep(0.3)
        seconds = []
        for _ in range(20):
            start = time.monotonic()
            assert small.probe("/livez").status == 200 and small.probe("/metrics").status == 200
            seconds.append(time.monotonic() - start)
        assert sorted(seconds)[10] < 0.5
        with socket.create_connection(small.address, timeout=0.5) as public:
            public.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with pytest.raises(TimeoutError):
                public.recv(1)
    finally:
        for raw in stalled:
            raw.close()


def test_those_who_stall_on_it_keep_nobody_out_and_are_cut_off(small):
    from serve.admin import MOST, PATIENCE_S

    stalled = [socket.create_connection(small.admin, timeout=PATIENCE_S + 3) for _ in range(MOST + 20)]
    start = time.monotonic()
    try:
        stalled[-1].sendall(b"GET /livez HT")
        for _ in range(5):
            asked = time.monotonic()
            assert small.probe("/livez").status == 200
            assert time.monotonic() - asked < 1
        for _ in range(8):  # a byte in a while is no request either
            time.sleep(0.25)
            stalled[-1].sendall(b"x")
        assert stalled[0].recv(1) == b"" and time.monotonic() - start < PATIENCE_S - 1, "the oldest made room"
        assert stalled[-1].recv(1) == b"", "and all are cut off in the end"
        assert time.monotonic() - start < PATIENCE_S + 2
    finally:
        for raw in stalled:
            raw.close()


def test_a_port_in_use_is_one_line_where_it_was_named(tiny_bundle, tmp_path):
    from serve.cli import ADMIN_PORT, command

    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = ["serve", str(tiny_bundle), "--port", "0", "--admin-port", str(taken.getsockname()[1])]
        result = subprocess.run(
            [sys.executable, "-m", "dexml", *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT
        )
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert "--admin-port" in line and "in use" in line
    assert str(ADMIN_PORT) in CliRunner().invoke(command, ["--help"]).output


def test_ports_that_nobody_named_cost_no_service(tiny_bundle, running_servers):
    from serve.cli import ADMIN_PORT

    command = ["-m", "dexml", "serve", str(tiny_bundle), "--port", "0"]
    try:
        taken = socket.create_server(("127.0.0.1", ADMIN_PORT))
    except OSError:
        taken = socket.socket()  # somebody else has it, which will do
    with taken, running_servers(command, [*command, "--no-admin"]) as (unlucky, without):
        for server in (unlucky, without):
            assert server.ask("GET", "/metrics").status == 200 and "metrics" not in server.line
        assert "--admin-port" in unlucky.process.stderr.readline()
        unlucky.tell()
        without.tell()
        assert "--admin-port" not in without.process.stderr.read()


def test_it_says_not_ready_while_loading_and_draining_and_goes_with_the_process(running_servers, unused_ports):
    port = next(unused_ports)
    with running_servers(["tests/serve/stand_in.py", "0", "8", "2", f"admin_port={port}"]) as (server,):
        deadline, seen = time.monotonic() + 20, ""
        while not seen and time.monotonic() < deadline:
            try:
                reply = server.ask("GET", "/readyz", address=("127.0.0.1", port))
                seen = reply.json["error"]["code"]
                assert server.ask("GET", "/livez", address=("127.0.0.1", port)).status == 200
            except OSError:
                time.sleep(0.05)
        assert seen == "not_ready", "before anything is served"
        assert server.admin == ("127.0.0.1", port) and server.probe("/readyz").status == 200
        slow = threading.Thread(target=server.post, args=({"queries": ["slow 1500"]},))
        slow.start()
        time.sleep(0.2)
        server.tell(signal.SIGTERM)
        time.sleep(0.3)
        problem(server.probe("/readyz"), 503, "draining")
        assert server.probe("/livez").status == 200
        slow.join()
        assert server.process.wait(15) == 0
        with pytest.raises(OSError):
            server.probe("/livez")
