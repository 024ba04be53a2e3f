"""Send mutated bodies to every POST route of a real server process: each gets an answer or a problem document, and it lives on.

python benchmarks/fuzz_serve.py [--bodies 100000] [--seed 0] [--bundle DIR]: starts `dexml serve --writable` on a copy of the
bundle, or on a made-up one, and changes the examples of /openapi.json, as JSON and as bytes. Counts statuses by route, and as
wrong: 5xx (but 504 where the body set a deadline), anything but JSON, an error that is not as ProblemBody describes it, a 200
that is not as the route describes it, a status that the route does not name. Writes fuzz_serve.json; exits with 1 for anything
wrong, or when the process ended.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
from kill_store import make
from machine import describe, write_result

CLIENTS = 4
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**29,
    0.5,
    1e308,
    "",
    " ",
    "a",
    "\0",
    "\ud800",
    "名前 🎉",
    "a" * 40_000,
)
VALUES += ([], {}, [[]], [0.5] * 32, ["a"] * 65, [["a"]], {"text": "a"}, "topk", "all", "float", "base64", "label", "replace")
PIECES: tuple[bytes, ...] = (
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
PIECES += (b"\xff", b"\x00", b",", b":", b'"model":', b"\xe2\x80\xa8", b"-1", b"[" * 40, b"1.5", "名".encode())
EXTRA: dict[str, tuple[Any, ...]] = {
    "/v1/search": (
        {"embeddings": [[0.5] * 32], "min_score": 0.1, "exclude_ids": ["a"], "top_k": 3, "candidates": 9, "temperature": 0.05},
        {"queries": ["a", "b"], "include": ["text"], "truncate": False, "timeout_ms": 1000, "exact": False, "normalize": "all"},
    ),
    "/v1/embeddings": ({"input": "sort", "model": None, "encoding_format": "base64", "dimensions": 32, "input_type": "label"},),
    "/v1/rerank": ({"query": "a", "ids": ["n1", "n2"], "top_n": 1, "return_documents": True, "truncate": True},),
    "/v2/rerank": ({"query": "a", "documents": [{"text": "b"}, "c"], "top_n": 2},),
    "/v1/labels": (
        {"labels": [{"id": "a", "embedding": [0.5] * 32}, {"id": "b", "embedding": [0.1] * 32}], "if_exists": "replace"},
    ),
}


def main() -> None:
    """Start the server, send, print and write what came back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path, help="a bundle to copy and serve")
    parser.add_argument("--no-result", action="store_true", help="print the result and write no file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        shutil.copytree(given.bundle, bundle) if given.bundle else make(bundle)
        result = fuzz(bundle, given.bodies, given.seed)
    if not given.no_result:
        write_result("fuzz_serve", {"machine": describe(), **result})
    print(f"{'route':<20}" + "".join(f"{status:>9}" for status in result["statuses"]))
    for route, counts in result["routes"].items():
        print(f"{route:<20}" + "".join(f"{counts.get(status, 0):>9,}" for status in result["statuses"]))
    print(f"{result['bodies']:,} bodies in {result['seconds']:.0f} s, {result['wrong']} wrong, alive: {result['alive']}")
    for which in result["which"]:
        print(which)
    sys.exit(1 if result["wrong"] or not result["alive"] else 0)


def fuzz(bundle: Path, bodies: int, seed: int) -> dict[str, Any]:
    """Return what became of so many bodies, spread over the POST routes."""
    command = [sys.executable, "-m", "dexml", "serve", str(bundle), "--port", "0", "--writable", "--deadline-ms", "30000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+/", process.stdout.readline())
        assert found, "the server did not start"
        address = urlsplit(found[0]).netloc
        spec = json.loads(ask(http.client.HTTPConnection(address, timeout=60), "GET", "/openapi.json")[2])
        wrong: list[str] = []
        counts: dict[str, Counter[str]] = {path: Counter() for path, item in spec["paths"].items() if "post" in item}
        began = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            share = [(address, spec, bodies // CLIENTS, seed * CLIENTS + number, counts, wrong) for number in range(CLIENTS)]
            for sent in [pool.submit(send, *each) for each in share]:
                sent.result()
        seconds = time.monotonic() - began
        status, _, _ = ask(http.client.HTTPConnection(address, timeout=60), "GET", "/readyz")
        alive = status == 200 and process.poll() is None
    finally:
        process.terminate()
        ended = process.wait(60)
    return {
        "bodies": sum(sum(found.values()) for found in counts.values()),
        "seconds": round(seconds, 1),
        "statuses": sorted({status for found in counts.values() for status in found}),
        "routes": {path: dict(sorted(found.items())) for path, found in counts.items()},
        "wrong": len(wrong),
        "which": wrong[:10],
        "alive": alive and ended == 0,
    }


def send(address: str, spec: dict[str, Any], bodies: int, seed: int, counts: dict[str, Counter[str]], wrong: list[str]) -> None:
    """Send bodies one after the other over one connection, and look at every answer."""
    draw, connection = random.Random(seed), http.client.HTTPConnection(address, timeout=60)
    schemas, routes = spec["components"]["schemas"], list(counts)

    def checker(name: str) -> Any:
        return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": spec["components"]})

    problems, answers, seeds = checker("ProblemBody"), {}, {}
    for path in routes:
        operation = spec["paths"][path]["post"]
        answers[path] = checker(name_in(operation["responses"]["200"]))
        seeds[path] = [schemas[name_in(operation["requestBody"])]["example"], *EXTRA.get(path, ())]
    for number in range(bodies):
        path = routes[number % len(routes)]
        body = mutated(draw, draw.choice(seeds[path]))
        try:
            status, kind, reply = ask(connection, "POST", path, body)
        except (OSError, http.client.HTTPException) as error:
            wrong.append(f"{path} {body[:200]!r}: {error!r}")
            connection.close()
            continue
        counts[path][str(status)] += 1
        if status == 504 and b'"timeout_ms"' in body:  # as it asked for
            continue
        complaint = fault(status, kind, reply, spec["paths"][path]["post"], answers[path] if status == 200 else problems)
        if complaint:
            wrong.append(f"{path} {body[:200]!r}: {status} {complaint}")


def fault(status: int, kind: str, reply: bytes, operation: dict[str, Any], schema: Any) -> str | None:
    """Return what is wrong with an answer."""
    if status >= 500 or str(status) not in operation["responses"]:
        return "is no status of this route" if status < 500 else "is the server's fault"
    if kind != ("application/json" if status == 200 else "application/problem+json"):
        return f"came as {kind}"
    try:
        document = json.loads(reply, parse_constant=lambda name: f"not JSON: {name}")
    except ValueError as error:
        return f"is not JSON: {error}"
    if status != 200 and document.get("status") != status:
        return "says another status inside"
    complaint = next(schema.iter_errors(document), None)
    return None if complaint is None else f"is not as described: {complaint.message[:200]}"


def mutated(draw: random.Random, document: Any) -> bytes:
    """Return a document changed in a few places, as JSON, as bytes, or as both."""
    document = deepcopy(document)
    for _ in range(draw.randint(0, 2)):
        document = replaced(draw, document)
    body = json.dumps(document, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    for _ in range(draw.choice((0, 0, 0, 0, 1, 1, 2, 5))):
        place = draw.randrange(len(body) + 1)
        kind = draw.randrange(4)
        if kind == 0:
            body = body[:place] + draw.choice(PIECES) + body[place:]
        elif kind == 1:
            body = body[:place] + body[place + draw.randint(1, 12) :]
        elif kind == 2:
            body = body[:place] + bytes([draw.randrange(256)]) + body[place + 1 :]
        else:
            other = draw.randrange(len(body) + 1)
            body = body[:place] + body[min(place, other) : max(place, other)] + body[place:]
    return body


def replaced(draw: random.Random, document: Any) -> Any:
    """Return a document with a value put in somewhere, or a field taken away."""
    if not isinstance(document, dict | list) or not document or draw.random() < 0.1:
        return deepcopy(draw.choice(VALUES))
    place = draw.choice(list(document) if isinstance(document, dict) else range(len(document)))
    if draw.random() < 0.2:
        del document[place]
    else:
        document[place] = replaced(draw, document[place]) if draw.random() < 0.7 else deepcopy(draw.choice(VALUES))
    return document


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> tuple[int, str, bytes]:
    """Return status, content type and body of an answer."""
    connection.request(method, path, body, {"Content-Type": "application/json"} if body is not None else {})
    reply = connection.getresponse()
    return reply.status, reply.headers["Content-Type"], reply.read()


def name_in(part: dict[str, Any]) -> str:
    """Return the name of the schema of a body."""
    return str(part["content"]["application/json"]["schema"]["$ref"]).rpartition("/")[2]


if __name__ == "__main__":
    main()
