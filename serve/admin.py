"""A second, tiny listener for probes and metrics, on threads of its own: it answers while every request thread is taken.

It asks for no key, and shares no lock with the thread that owns the model.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serve.errors import BY_STATUS, Problem, body_of
from serve.hosts import is_allowed
from serve.metrics import Metrics
from serve.sharding import check_up
from serve.worker import ENDED, Worker

log = logging.getLogger("dexml.admin")

PATIENCE_S = 5.0  # for a whole request and its answer
MOST = 128  # connections at once; one more costs the oldest its place, so that those who stall keep nobody out
JSON = "application/json"


def check_alive(worker: Worker) -> None:
    """Raise Problem when nothing will ever be answered."""
    if not worker.alive:
        raise Problem("not_ready", ENDED)


class AdminServer(ThreadingHTTPServer):
    """`/livez`, `/readyz` and `/metrics` on a socket that listens already; `start` after any fork."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, worker: Worker, metrics: Metrics) -> None:
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()  # the one that the base class made
        self.socket = listener
        self.host = listener.getsockname()[0]
        self.worker = worker
        self.metrics = metrics
        self._until: dict[Any, float] = {}

    def start(self) -> None:
        """Answer from now on."""
        threading.Thread(target=self.serve_forever, name="dexml-admin", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread."""
        if len(self._until) >= MOST:
            self._cut(next(iter(self._until)))
        self._until[request] = time.monotonic() + PATIENCE_S
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that is done."""
        self._until.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut off, twice a second, who is too slow: one byte in a while must not hold a thread for ever."""
        now = time.monotonic()
        for request, until in list(self._until.items()):
            if until < now:
                self._cut(request)

    def _cut(self, request: Any) -> None:
        self._until.pop(request, None)
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Leave a connection that broke without a word on stderr."""
        log.debug("a connection to the admin listener broke", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One request to a connection."""

    timeout = PATIENCE_S
    server: AdminServer
    server_version, sys_version = "dexml", ""

    def do_GET(self) -> None:
        """Answer a probe or a scrape; everything that fails is problem details."""
        server = self.server
        try:
            host = self.headers.get("Host")
            if host is not None and not is_allowed(host, server.host, ()):  # allowed_hosts are names of the public port
                raise Problem("forbidden_host")
            path = self.path.partition("?")[0]
            if path == "/livez":
                check_alive(server.worker)
                self._send(200, JSON, b'{"status": "alive"}')
            elif path == "/readyz":
                check_up(server.worker.check_ready().store)
                self._send(200, JSON, b'{"status": "ready"}')
            elif path == "/metrics":
                page, content_type = server.metrics.page(self.headers.get("Accept", ""))
                self._send(200, content_type, page)
            else:
                raise Problem("not_found")
        except Problem as problem:
            self._refuse(problem)

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses: its own words would be HTML and hold the request."""
        status = 405 if code == HTTPStatus.NOT_IMPLEMENTED else code  # its answer to a method that has no function here
        self._refuse(Problem(BY_STATUS.get(status, "bad_request"), headers={"Allow": "GET, HEAD"} if status == 405 else None))

    def log_message(self, format: str, *args: Any) -> None:
        """Leave probes out of the log."""

    def _refuse(self, problem: Problem) -> None:
        body = json.dumps(body_of(problem, "", "")).encode()
        self._send(problem.status, "application/problem+json", body, problem.headers)

    def _send(self, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            **(headers or {}),
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Connection": "close",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
