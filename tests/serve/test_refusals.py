"""One test per row of SERVING's status table: the status, the code, the header, and a body that is never HTML."""

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


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b'{"queries": ["a"]} x', "malformed_json"),
        (b"\xff\xfe", "malformed_json"),
        (b'{"queries": ["\xc3\x28"]}', "malformed_json"),
        (b'{"queries": ["a\x00b"]}', "malformed_json"),
        (b'\xef\xbb\xbf{"queries": ["a"]}', "malformed_json"),
        (b'{"queries": ["a"], "min_score": NaN}', "non_finite_number"),
        (b'{"queries": ["a"], "min_score": -Infinity}', "non_finite_number"),
        (b'{"embeddings": [[1e999]]}', "non_finite_number"),
        (b'{"queries": ["a"], "queries": ["b"]}', "duplicate_key"),
        (b'{"queries": ' + b"[" * 40 + b"]" * 40 + b"}", "too_deep"),
        (b"[" * 20_000, "too_deep"),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "too_deep"),
        (b'{"queries": ["a"], "top_k": ' + b"1" * 31 + b"}", "number_too_long"),
        (b'{"queries": ["a"], "top_k": ' + b"9" * 5000 + b"}", "number_too_long"),
    ],
)
def test_what_is_not_plain_json_is_400(server, body: bytes, code: str):
    check(server.post(body), 400, code)


@pytest.mark.parametrize(("levels", "code"), [(31, "schema"), (32, "too_deep")])
def test_the_33rd_level_is_too_deep(server, levels: int, code: str):
    mixed = b'[{"a":' * (levels // 2) + b"[" * (levels % 2) + b"]" * (levels % 2) + b"}]" * (levels // 2)
    mixed = mixed.replace(b":}", b":1}")
    check(server.post(b'{"queries": ' + mixed + b', "x": [[], {}, "]]"]}'), 400 if code == "too_deep" else 422, code)


def test_brackets_inside_strings_are_no_nesting(server):
    assert server.post({"queries": ["[" * 100 + '\\" {' * 100]}).status == 200


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ([], "schema", ""),
        ("{}", "schema", ""),
        ({}, "schema", ""),
        ({"queries": ["a"], "embeddings": [[1.0] * 64]}, "schema", ""),
        ({"queries": "a"}, "schema", "/queries"),
        ({"queries": [1]}, "schema", "/queries/0"),
        ({"queries": ["a"], "top": 3}, "schema", "/top"),
        ({"queries": ["a"], "top_k": True}, "schema", "/top_k"),
        ({"queries": ["a"], "top_k": "5"}, "schema", "/top_k"),
        ({"queries": ["a"], "top_k": 1.5}, "schema", "/top_k"),
        ({"queries": ["a"], "normalize": "softmax"}, "schema", "/normalize"),
        ({"queries": ["a"], "include": ["embedding"]}, "schema", "/include/0"),
        ({"embeddings": [["1"] * 64]}, "schema", "/embeddings/0/0"),
        ({"embeddings": [[True] * 64]}, "schema", "/embeddings/0/0"),
        ({"queries": []}, "empty", "/queries"),
        ({"embeddings": []}, "empty", "/embeddings"),
        ({"queries": [""]}, "empty", "/queries/0"),
        ({"queries": ["a", " \t\n"]}, "empty", "/queries/1"),
        ({"queries": ["\u200b"]}, "empty", "/queries/0"),
        ({"queries": [" \u00ad\u2060\ufeff\u3000"]}, "empty", "/queries/0"),
        ({"queries": ["a\0b"]}, "invalid_text", "/queries/0"),
        ({"queries": ["a\ud800"]}, "invalid_text", "/queries/0"),
        ({"queries": ["a"], "exclude_ids": ["a\nb"]}, "invalid_text", "/exclude_ids/0"),
        ({"queries": ["a"], "exclude_ids": ["a", "\ud800"]}, "invalid_text", "/exclude_ids/1"),
        ({"queries": ["a"], "exclude_ids": [""]}, "empty", "/exclude_ids/0"),
        ({"queries": ["a"], "exclude_ids": ["ü" * 129]}, "text_too_long", "/exclude_ids/0"),
        ({"queries": ["a" * 32_769]}, "text_too_long", "/queries/0"),
        ({"queries": ["long text"], "truncate": False}, "too_many_tokens", "/queries/0"),
        ({"queries": ["a"], "top_k": 0}, "top_k_out_of_range", "/top_k"),
        ({"queries": ["a"], "top_k": -1}, "top_k_out_of_range", "/top_k"),
        ({"queries": ["a"], "top_k": 1001}, "top_k_out_of_range", "/top_k"),
        ({"queries": ["a"], "candidates": 2049}, "candidates_out_of_range", "/candidates"),
        ({"queries": ["a"], "top_k": 10, "candidates": 9}, "candidates_out_of_range", ""),
        ({"queries": ["a"], "temperature": 0}, "temperature_out_of_range", "/temperature"),
        ({"queries": ["a"], "temperature": -1.0}, "temperature_out_of_range", "/temperature"),
        ({"queries": ["a"], "temperature": 101}, "temperature_out_of_range", "/temperature"),
        ({"queries": ["a"], "diversity": 0}, "diversity_out_of_range", "/diversity"),
        ({"queries": ["a"], "diversity": -0.5}, "diversity_out_of_range", "/diversity"),
        ({"queries": ["a"], "diversity": 1001}, "diversity_out_of_range", "/diversity"),
        ({"queries": ["a"], "diversity": True}, "schema", "/diversity"),
        ({"queries": ["a"], "diversity": 0.5, "candidates": 513}, "candidates_out_of_range", ""),
        ({"queries": ["a"], "diversity": 0.5, "top_k": 512, "exclude_ids": ["b", "b"]}, "candidates_out_of_range", ""),
        ({"queries": ["a"], "timeout_ms": 30_001}, "timeout_out_of_range", "/timeout_ms"),
        ({"embeddings": [[1.0] * 63]}, "dimension_mismatch", "/embeddings/0"),
        ({"embeddings": [[1.0] * 64, [0.0] * 64]}, "zero_vector", "/embeddings/1"),
    ],
)
def test_what_has_the_wrong_form_is_422_with_a_pointer(server, body, code: str, pointer: str):
    problem = check(server.post(body), 422, code)
    assert problem["errors"][0]["pointer"] == pointer and problem["errors"][0]["code"] == code


def test_the_detail_names_the_field_and_what_is_allowed(server):
    problem = server.post({"queries": ["a"], "top_k": 5000}).json
    assert problem["detail"] == "top_k must be between 1 and 1000, got 5000"
    assert problem["error"]["param"] == "top_k" and problem["instance"] == "/v1/search"
    assert server.post({"queries": ["a\ud800"]}).json["detail"] == "queries.0 holds half a surrogate pair"


def test_too_many_queries_are_413(server):
    check(server.post({"queries": ["a"] * 65}), 413, "batch_too_large")
    assert server.post({"queries": ["a"] * 64}).status == 200


def test_a_body_over_the_limit_is_413_with_a_length(server):
    check(server.post(json.dumps({"queries": ["a" * 2_000_001]}).encode()), 413, "body_too_large")


def test_a_body_over_the_limit_is_413_in_chunks_too(server):
    chunks = (b" " * 100_000 for _ in range(21))
    check(server.ask("POST", "/v1/search", chunks, {"Content-Type": "application/json"}), 413, "body_too_large")


def test_a_chunked_body_within_the_limit_is_read_whole(server):
    whole = json.dumps({"queries": ["sort an array"] * 64}).encode() + b" " * 1_900_000
    chunks = (whole[i : i + 50_000] for i in range(0, len(whole), 50_000))
    reply = server.ask("POST", "/v1/search", chunks, {"Content-Type": "application/json"})
    assert reply.status == 200 and len(reply.json["results"]) == 64


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_other_media_types_are_415(server, headers: dict[str, str]):
    check(server.ask("POST", "/v1/search", json.dumps(GOOD).encode(), headers), 415, "unsupported_media_type")


@pytest.mark.parametrize("path", ["/nothing", "/v1/search/", "/v1//search", "/v1", "/static/../api.py", "/static/nothing.js"])
def test_unknown_paths_are_404(server, path: str):
    check(server.ask("GET", path), 404, "not_found")


def test_an_unknown_index_version_is_404(server):
    check(server.post({**GOOD, "index_version": "v000000009"}), 404, "not_found")
    assert server.post({**GOOD, "index_version": "v000001"}).status == 200


@pytest.mark.parametrize(("method", "path", "allowed"), [("GET", "/v1/search", "POST"), ("DELETE", "/v1/info", "GET")])
def test_other_methods_are_405_with_allow(server, method: str, path: str, allowed: str):
    reply = server.ask(method, path)
    check(reply, 405, "method_not_allowed")
    assert allowed in reply.headers["Allow"]


def test_a_bug_is_500_and_says_nothing_of_itself(server):
    reply = server.post({"queries": ["broken"]})
    problem = check(reply, 500, "internal")
    assert b"secret" not in reply.body and b"Traceback" not in reply.body
    assert problem["request_id"] == reply.headers["X-Request-ID"]


def test_a_deadline_in_the_request_is_504(server):
    check(server.post({"queries": ["slow 400"], "timeout_ms": 50}), 504, "deadline_exceeded")


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
