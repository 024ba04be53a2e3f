"""Whatever the body holds: an answer or a problem document, never a 5xx, never HTML, and never slowly."""

from __future__ import annotations

import json
import random
import time

import pytest

SEEDS = (
    b'{"queries": ["sort an array", "cluster"], "top_k": 5, "candidates": 200, "temperature": 0.05, "normalize": "all"}',
    b'{"embeddings": [[' + b", ".join(b"0.5" for _ in range(64)) + b']], "min_score": null, "exclude_ids": ["a"]}',
    b'{"queries": ["x"], "include": ["text", "probability"], "truncate": true, "timeout_ms": 1000, "exact": false}',
)
PIECES = (
    b"NaN",
    b"-",
    b"1e999",
    b"\\u0000",
    b"\\ud800",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"\\",
    b"null",
    b"true",
    b"0",
    b"9" * 40,
)
PIECES += (b"\xff", b"\x00", b",", b":", b'"queries":', b"\xe2\x80\xa8", b"-1", b"[[[[", b"1.5", "名".encode())


def mutate(chance: random.Random, body: bytes) -> bytes:
    for _ in range(chance.randint(1, 5)):
        place = chance.randrange(len(body) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            body = body[:place] + chance.choice(PIECES) + body[place:]
        elif kind == 1:
            body = body[:place] + body[place + chance.randint(1, 12) :]
        elif kind == 2:
            body = body[:place] + bytes([chance.randrange(256)]) + body[place + 1 :]
        else:
            other = chance.randrange(len(body) + 1)
            body = body[:place] + body[min(place, other) : max(place, other)] + body[place:]
    return body


def test_mutated_bodies_are_answered_or_refused(make_app):
    app = make_app()
    assert app.extensions["dexml"].worker.wait_until_loaded(10)
    client, chance, seen = app.test_client(), random.Random(7), set()
    for number in range(1500):
        body = mutate(chance, SEEDS[number % len(SEEDS)])
        reply = client.post("/v1/search", data=body, content_type="application/json")
        seen.add(reply.status_code)
        assert reply.status_code in (200, 400, 413, 422), (reply.status_code, body)
        document = json.loads(reply.data, parse_constant=pytest.fail)
        if reply.status_code != 200:
            assert reply.content_type == "application/problem+json" and document["status"] == reply.status_code
    assert {200, 400, 422} <= seen


@pytest.mark.parametrize(
    "body",
    [
        b'"' * 1_999_999,
        b'"\\' * 999_999,
        b"[" * 1_999_999,
        b'{"a":' * 399_999,
        b"[" + b"[]," * 666_000 + b"1]",
        b'{"queries": [' + b"0," * 990_000 + b"0]}",
        b'{"embeddings": [[' + b"0," * 990_000 + b"0]]}",
        b'{"embeddings": [' + b"[]," * 660_000 + b"[]]}",
        b'{"exclude_ids": [' + b'"",' * 660_000 + b'""]}',
        b'{"queries": ["a"], "include": [' + b'"text",' * 240_000 + b'"text"]}',
        b'{"top_k": 1' + b"0" * 1_999_000 + b"}",
        b"{" + b",".join(b'"%d":1' % number for number in range(180_000)) + b"}",
        b'{"queries": ["' + b"\\u0000" * 333_000 + b'"]}',
    ],
)
def test_two_megabytes_of_anything_are_refused_quickly(make_app, body: bytes):
    assert len(body) <= 2_000_000
    app = make_app()
    assert app.extensions["dexml"].worker.wait_until_loaded(10)
    start = time.process_time()
    reply = app.test_client().post("/v1/search", data=body, content_type="application/json")
    assert reply.status_code in (400, 413, 422) and len(reply.data) < 20_000
    assert time.process_time() - start < 3
