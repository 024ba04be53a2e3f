"""What stands in the log: a line for each request, nothing of what it asked, and no line that a client wrote."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys

import pytest

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]+ .*|\| .*")
FORGED = "FORGED 2026-01-01T00:00:00.000Z INFO"
KEY = "sk-0123456789-a-key"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def servers(running_servers):
    """Stand-ins that log in text, in JSON, and as nobody asked them to."""
    base = ["tests/serve/stand_in.py", "0"]
    verbose = [*base, "log_level=debug"]
    with running_servers([*verbose, "log_format=text"], [*verbose, "log_format=json"], base) as started:
        yield started


def raw(server, sent: bytes) -> None:
    with socket.create_connection(server.address, timeout=5) as connection:
        connection.sendall(sent)
        connection.settimeout(0.5)
        try:
            while connection.recv(4096):
                pass
        except TimeoutError:
            pass


def attack(server) -> None:
    """Ask with line ends, ANSI sequences and a forged line wherever a client may write."""
    hostile = f"\r\n{FORGED}\n\x1b[31m\u202e\x9b31m\u2028"
    server.post({"queries": [f"private{hostile}"]}, Authorization=f"Bearer {KEY}")
    server.post({"queries": ["broken"], hostile: 1})
    server.post({"queries": ["broken"]})  # an exception whose text is hostile too
    server.post({"queries": ["sort"], "top_k": hostile})
    server.post(hostile.encode())
    server.ask("GET", "/%0d%0aFORGED%1b%5b31m?q=%0d%0aFORGED", headers={"X-API-Key": KEY, "User-Agent": "FORGED\x1b[31m"})
    server.ask("GET", "/v1/labels?limit=%0aFORGED")
    for name in (b"X-Request-ID", b"traceparent", b"Host", b"Referer"):
        raw(
            server, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + name + b": a\x0bFORGED\x1b[31m\r\nConnection: close\r\n\r\n"
        )
        raw(server, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + name + b": a\rFORGED\x1b[31m\r\nConnection: close\r\n\r\n")
    raw(server, b"F\x1b[31mORGED / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    raw(server, b"GET /\x1b[31mFORGED HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")


def lines_of(server) -> list[str]:
    assert server.process.poll() is None
    server.tell()
    server.process.wait(15)
    written = server.process.stderr.read()
    assert "\x1b" not in written and "\r" not in written and not re.search("[\x80-\x9f\u2028\u202e]", written)
    return written.splitlines()


def test_a_client_cannot_write_a_line_in_text(servers):
    server = servers[0]
    attack(server)
    lines = lines_of(server)
    assert len(lines) > 10
    for line in lines:
        assert LINE.fullmatch(line), line
        assert not line.startswith("FORGED") and KEY not in line and "private" not in line
    assert sum("FORGED" in line for line in lines) == sum("\\x1b[31mFORGED" in line for line in lines), "of a traceback alone"
    entry = next(line for line in lines if "status=500" in line)
    assert re.search(
        r"request_id=req_\w+ method=POST route=/v1/search status=500 code=internal duration_ms=\S+ bytes=\d+", entry
    )


def test_each_request_is_one_json_object(servers):
    server = servers[1]
    headers = {"X-Request-ID": "mine-1", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    reply = server.post({"queries": ["a very private text", "sort"]}, **headers)
    assert reply.status == 200
    assert server.post({"queries": ["slow 300"], "timeout_ms": 50}).status == 504
    server.ask("GET", "/livez")
    attack(server)
    lines = lines_of(server)
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        assert {"time", "level", "logger", "message"} <= set(entry) and re.match(r"\d{4}-\d\d-\d\dT", entry["time"])
    first = next(entry for entry in entries if entry.get("request_id") == "mine-1")
    seconds = first.pop("duration_ms")
    assert 0 < seconds < 5000 and first.pop("time")
    assert first == {
        "level": "info",
        "logger": "dexml.access",
        "message": "answered",
        "request_id": "mine-1",
        "method": "POST",
        "route": "/v1/search",
        "status": 200,
        "bytes": len(reply.body),
        "queries": 2,
        "trace_id": TRACE,
    }
    late = next(entry for entry in entries if entry.get("status") == 504)
    assert late["code"] == "deadline_exceeded" and late["duration_ms"] >= 50
    assert {entry["level"] for entry in entries if entry.get("route") == "/livez"} == {"debug"}
    traced = [entry for entry in entries if "traceback" in entry]
    assert traced and all("RuntimeError" in entry["traceback"] for entry in traced)
    for line in lines:
        assert "private" not in line and KEY not in line
        assert "FORGED" not in line or "traceback" in json.loads(line)


def test_it_is_quiet_unless_asked_or_failing(servers):
    server = servers[2]
    assert server.post({"queries": ["sort"]}).status == 200 and server.post({"queries": []}).status == 422
    assert server.ask("GET", "/nothing").status == 404
    assert server.post({"queries": ["broken"]}, **{"X-Request-ID": "mine-2"}).status == 500
    lines = [line for line in lines_of(server) if not line.startswith("| ")]
    assert len(lines) == 2 and "a search failed" in lines[0] and "ERROR" in lines[1] and "request_id=mine-2" in lines[1]


def test_what_cannot_be_seen_is_escaped():
    from serve.logs import printable

    assert printable("plain ünïcode 名前 🎉 \\n") == "plain ünïcode 名前 🎉 \\n"
    assert printable("a\r\n\x1b[31m\x7f\x9b\u2028\u202e\ud800b") == "a\\r\\n\\x1b[31m\\x7f\\x9b\\u2028\\u202e\\ud800b"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_record_with_a_hostile_message_is_one_line(form: str):
    from serve.logs import FORMATS

    try:
        raise ValueError(f"\n{FORGED}\x1b[31m")
    except ValueError:
        record = logging.LogRecord("other", logging.ERROR, "f.py", 1, "said %s", (f"\r\n{FORGED}",), sys.exc_info())
    written = FORMATS[form]().format(record)
    assert "\x1b" not in written and "\r" not in written
    first, *rest = written.split("\n")
    assert all(line.startswith("| ") for line in rest) and (rest == []) == (form == "json")
    if form == "json":
        assert json.loads(first)["message"].endswith(FORGED)


def test_trace_ids_are_those_of_the_standard():
    from serve.logs import trace_id

    assert trace_id(f"00-{TRACE}-b7ad6b7169203331-01") == TRACE
    for wrong in (
        "",
        TRACE,
        f"00-{TRACE.upper()}-b7ad6b7169203331-01",
        f"00-{TRACE}-b7ad6b7169203331-01\n",
        f"00-{TRACE}-1-01",
    ):
        assert trace_id(wrong) is None


def test_no_record_is_made_where_logging_is_off(make_app):
    app = make_app()
    app.extensions["dexml"].worker.wait_until_loaded(10)
    made = []
    logger = logging.getLogger("dexml.access")
    logger.addFilter(made.append)
    try:
        assert app.test_client().get("/v1/info").status_code == 200
    finally:
        logger.removeFilter(made.append)
    assert made == []
