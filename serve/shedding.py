"""In front of the application: while the queue is full, work is refused before anything else is done for it.

An overloaded service spends its time on refusals. Through Flask, routing, the JSON loader and the models one costs about as
much as the Python part of an answer, which the answers then lack; here it costs what gunicorn needs to read the head. The
body is left unread: gunicorn throws it away, or the connection with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from serve.api import SECURITY_HEADERS, request_id_of
from serve.errors import body_of
from serve.metrics import Metrics
from serve.worker import Worker

# The work that goes through the queue; all else answers as always.
PATHS = frozenset({"/v1/search", "/v1/embeddings", "/v1/rerank", "/v1/labels", "/v1/labels/delete"})

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Shedding:
    """A WSGI application that refuses what there is no room for, and hands on everything else to another."""

    def __init__(self, inner: Application, worker: Worker, metrics: Metrics) -> None:
        self._inner = inner
        self._worker = worker
        self._metrics = metrics
        self._headers = [*SECURITY_HEADERS.items(), ("Cache-Control", "no-store")]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer with 429 where the queue is full, and nothing has to be known of the request to say so."""
        path = environ["PATH_INFO"]
        problem = None
        if environ["REQUEST_METHOD"] == "POST" and path in PATHS and not self._worker.draining:
            problem = self._worker.overload()
        if problem is None:
            return self._inner(environ, start_response)
        request_id = request_id_of(environ.get("HTTP_X_REQUEST_ID", ""))
        body = json.dumps(body_of(problem, path, request_id)).encode()
        headers = [
            ("Content-Type", "application/problem+json"),
            ("Content-Length", str(len(body))),
            ("X-Request-ID", request_id),
            *problem.headers.items(),
            *self._headers,
        ]
        self._metrics.answered(path, "POST", problem.status)
        self._metrics.rejected(problem.code)
        start_response(f"{problem.status} Too Many Requests", headers)
        return [body]
