"""What the rows of the status table (test_status_table.py) do not show: limits from both sides, broken HTTP, hosts."""

from __future__ import annotations

import doctest
import json
import socket

import pytest

from serve import hosts

GOOD = {"queries": ["sort an array"]}


def check(reply, status: int, code: str) -> dict:
    assert reply.status == status, reply.body
    assert reply.headers["Content-Type"] == "application/problem+json"
    problem = reply.json
    assert problem["status"] == status and problem["error"]["code"] == code and problem["type"].endswith(code)
    assert set(problem) == {"type", "title", "status", "detail", "instance", "request_id", "errors", "error"}
    assert set(problem["error"]) == {"message", "type", "param", "code"}
    assert problem["detail"] == problem["error"]["message"] != ""
    return problem


@pytest.mark.parametrize(("levels", "code"), [(31, "schema"), (32, "too_deep")])
def test_the_33rd_level_is_too_deep(server, levels: int, code: str):
    mixed = b'[{"a":' * (levels // 2) + b"[" * (levels % 2) + b"]" * (levels % 2) + b"}]" * (levels // 2)
    mixed = mixed.replace(b":}", b":1}")
    check(server.post(b'{"queries": ' + mixed + b', "x": [[], {}, "]]"]}'), 400 if code == "too_deep" else 422, code)


def test_brackets_inside_strings_are_no_nesting(server):
    assert server.post({"queries": ["[" * 100 + '\\" {' * 100]}).status == 200


def test_the_detail_names_the_field_and_what_is_allowed(server):
    problem = server.post({"queries": ["a"], "top_k": 5000}).json
    assert problem["detail"] == "top_k must be between 1 and 1000, got 5000"
    assert problem["error"]["param"] == "top_k" and problem["instance"] == "/v1/search"
    assert server.post({"queries": ["a\ud800"]}).json["detail"] == "queries.0 holds half a surrogate pair"


def test_a_chunked_body_within_the_limit_is_read_whole(server):
    whole = json.dumps({"queries": ["sort an array"] * 64}).encode() + b" " * 1_900_000
    chunks = (whole[i : i + 50_000] for i in range(0, len(whole), 50_000))
    reply = server.ask("POST", "/v1/search", chunks, {"Content-Type": "application/json"})
    assert reply.status == 200 and len(reply.json["results"]) == 64


def raw(server, data: bytes) -> bytes:
    with socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (
            b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
            b"\r\nzz\r\n{}\r\n0\r\n\r\n",
            400,
        ),
        (
            b'POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"qu',
            400,
        ),
    ],
)
def test_broken_http_is_a_problem_document_too(server, data: bytes, status: int):
    head, _, body = raw(server, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status), head
    assert b"application/problem+json" in head and json.loads(body)["status"] == status


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "localhost, evil.example"),
        *("10.0.0.1", "0.0.0.0", "127.1", "::1", "[::2]", "", "localhost:80:80", "localhost:http", "user@localhost"),
    ],
)
def test_a_foreign_host_is_421_as_dns_rebinding_would_send_it(server, host: str):
    problem = check(server.ask("POST", "/v1/search", b"{}", {"Host": host}), 421, "forbidden_host")
    assert "--allow-host" in problem["detail"]
    assert server.ask("GET", "/", headers={"Host": host}).status == 421
    assert server.ask("GET", "/static/app.js", headers={"Host": host}).status == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.:9", "127.0.0.1:1", "127.9.8.7", "[::1]", "[::1]:8080"])
def test_this_machine_has_many_names(server, host: str):
    assert server.ask("GET", "/livez", headers={"Host": host}).status == 200


def test_examples_in_the_docstrings():
    assert doctest.testmod(hosts).failed == 0


def test_a_request_of_http_1_0_need_not_name_a_host(server):
    assert raw(server, b"GET /livez HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200")


def test_allow_host_on_the_command_line(real):
    assert real.ask("GET", "/livez", headers={"Host": "search.example"}).status == 200
    check(real.ask("GET", "/livez", headers={"Host": "evil.example"}), 421, "forbidden_host")


def test_allowed_hosts(make_app):
    def ask(app, host: str) -> int:
        return app.test_client().get("/livez", headers={"Host": host}).status_code

    behind_a_proxy = make_app(allowed_hosts=("Search.Example", "[fe80::1]"))
    assert [ask(behind_a_proxy, host) for host in ("search.example:443", "[fe80::1]", "localhost")] == [200] * 3
    assert ask(behind_a_proxy, "other.example") == ask(behind_a_proxy, "a.search.example") == 421
    open_to_all = make_app(host="0.0.0.0")
    assert ask(open_to_all, "any.example") == 200
    open_to_some = make_app(host="0.0.0.0", allowed_hosts=("search.example",))
    assert [ask(open_to_some, host) for host in ("search.example", "127.0.0.1", "any.example")] == [200, 200, 421]


def test_the_process_is_still_there(server):
    assert server.ask("GET", "/livez").status == 200 and server.post(GOOD).status == 200
