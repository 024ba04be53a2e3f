"""While the queue is full, work is refused before anything else is done for it.

An overloaded service spends its time on refusals. Through a thread, Flask, routing, the JSON loader and the models one costs
as much as the Python part of an answer, which the answers then lack, and it waits for all of these. So the thread that gathers
requests answers at once (`early`); whatever it does not see through is refused in front of Flask (`Shedding`), its body
unread: gunicorn throws that away, or the connection with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Any

from serve.api import COMMON, Service, request_id_of
from serve.errors import body_of

# The work that goes through the queue; all else answers as always.
PATHS = frozenset({"/v1/search", "/v1/embeddings", "/v1/rerank", "/v2/rerank", "/v1/labels", "/v1/labels/delete"})
STATUS = "429 Too Many Requests"

_LINE = re.compile(rb"POST (/v[12]/[a-z/]{1,32}) HTTP/1\.1\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
_ID = re.compile(rb"\r\nx-request-id:[ \t]*([A-Za-z0-9._-]{1,128})[ \t]*\r\n", re.IGNORECASE)
_ODD = re.compile(rb"transfer-encoding|expect|upgrade|connection|content-length.*content-length", re.IGNORECASE | re.DOTALL)
_KEEPS = re.compile(rb"\r\nconnection:[ \t]*keep-alive[ \t]*(?=\r\n)", re.IGNORECASE)

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def refusal(service: Service, path: str, given_id: str, under_way: int = 0) -> tuple[list[tuple[str, str]], bytes] | None:
    """Return headers and body of a 429, counted as such; None where there is room, or another reason to refuse."""
    worker = service.worker
    if path not in PATHS or worker.draining or (problem := worker.overload(under_way)) is None:
        return None
    service.metrics.answered(path, "POST", problem.status)
    service.metrics.rejected(problem.code)
    request_id = request_id_of(given_id)
    body = json.dumps(body_of(problem, path, request_id)).encode()
    own = (
        ("Content-Type", "application/problem+json"),
        ("Content-Length", str(len(body))),
        ("X-Request-ID", request_id),
        *problem.headers.items(),
    )
    return [*own, *COMMON], body


def early(service: Service, held: bytes | bytearray, under_way: int = 0) -> bytes | None:
    """Return the whole answer to one whole request while the queue is full; None where Flask or gunicorn is to see it.

    `under_way` is how many requests have been handed to threads and are not answered yet.

    The connection is kept, so where the request ends must be beyond doubt: whatever is out of the ordinary is left to gunicorn.
    """
    line = _LINE.match(held)
    end = held.find(b"\r\n\r\n") + 4
    if line is None or end < 4:
        return None
    head = _KEEPS.sub(b"", bytes(held[:end]))
    length = _LENGTH.search(head)
    if length is None or len(held) != end + int(length[1]) or _ODD.search(head) or head.count(b"\n") != head.count(b"\r\n"):
        return None
    if b"\r\n " in head or b"\r\n\t" in head:  # a folded line
        return None
    given = _ID.search(head)
    found = refusal(service, line[1].decode(), given[1].decode() if given else "", under_way)
    if found is None:
        return None
    headers, body = found
    lines = [f"HTTP/1.1 {STATUS}", f"Date: {formatdate(usegmt=True)}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Shedding:
    """A WSGI application that refuses what there is no room for, and hands on everything else to another."""

    def __init__(self, inner: Application, service: Service) -> None:
        self._inner = inner
        self._service = service

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer with 429 where the queue is full, and nothing has to be known of the request to say so."""
        if environ["REQUEST_METHOD"] == "POST":
            found = refusal(self._service, environ["PATH_INFO"], environ.get("HTTP_X_REQUEST_ID", ""))
            if found is not None:
                start_response(STATUS, found[0])
                return [found[1]]
        return self._inner(environ, start_response)
