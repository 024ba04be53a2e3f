"""Requests are gathered before a thread is spent on them: who sends slowly, or nothing, holds a socket and no more.

Gunicorn's thread worker gives a connection to a thread at its first byte, and the thread then waits for the rest for as long
as the client likes: a few hundred stalled connections take every thread. It also closes connections on the thread that accepts
them, where each client that keeps its own end open holds up all others for two seconds. Here that one thread collects what
arrives, without waiting, and says goodbye without waiting; a thread gets a request that is whole, or too long to collect.
"""

from __future__ import annotations

import math
import re
import resource
import selectors
import socket
import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.http.errors import ParseException
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import ThreadWorker

MOST_GATHERED = 65_536  # bytes of one request; a longer one is read on by its thread, against the same deadline
OWN_FILES = 256  # open for other purposes: a bundle, what loads beside it, the admin listener
LINGER_S = 2.0  # for the other end to close too, lest the last answer be lost with a reset
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n")


class Stalled(ParseException):  # type: ignore[misc]
    """The request was not there in time."""


class PatientReader(SocketUnreader):  # type: ignore[misc]
    """Gunicorn's reader of a connection, which waits for bytes until `deadline` (monotonic seconds) and no longer."""

    deadline = math.inf

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return the next bytes, b"" at the end. Raises Stalled at the deadline."""
        left, limit = self.deadline - time.monotonic(), self.sock.gettimeout()
        if left == math.inf or (limit is not None and limit < left):
            return super().chunk(size_hint)  # type: ignore[no-any-return]
        try:
            self.sock.settimeout(max(left, 1e-3))
            return super().chunk(size_hint)  # type: ignore[no-any-return]
        except TimeoutError:
            raise Stalled from None
        finally:
            self.sock.settimeout(limit)


class Intake(ThreadWorker):  # type: ignore[misc]
    """Gunicorn's thread worker behind a gathering of requests; its arbiter's settings hold as ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gathered: dict[Any, bytearray] = {}  # by connection, the oldest first
        self._parting: dict[Any, int] = {}  # connections that wait for their other end, and the bytes thrown away
        self.under_way: set[Any] = set()  # connections whose request has been given to a thread and is not answered yet

    @property
    def patience(self) -> float:
        """Return how many seconds a client has for a whole request."""
        seconds: float = self.wsgi.extensions["dexml"].settings.client_timeout_s
        return seconds

    def enqueue_req(self, conn: Any) -> None:
        """Gather a request of a connection, new or kept alive, and give it to a thread then."""
        conn.init()
        reader = conn.parser.unreader
        if not isinstance(reader, PatientReader):
            reader = conn.parser.unreader = PatientReader(conn.sock)
        reader.deadline = conn.timeout = time.monotonic() + self.patience
        conn.sock.setblocking(False)
        self._gathered[conn] = bytearray(reader.take_buffered())
        if not self._is_complete(conn):
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_more, conn))
            return
        self._hand_over(conn)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer; the deadline was for the request."""
        try:
            return super().handle_request(req, conn)
        finally:
            conn.parser.unreader.deadline = math.inf

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Keep the connection, or close it without waiting for the other end."""
        self.under_way.discard(conn)
        if fs.cancelled() or fs.exception() is not None or fs.result():
            super().finish_request(conn, fs)
            return
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_parting, conn))
        except (OSError, ValueError):  # it has gone
            self._forget(conn)
            return
        conn.timeout = time.monotonic() + LINGER_S
        self._parting[conn] = 0

    def murder_pending(self) -> None:
        """Refuse those whose time is up, the oldest first."""
        super().murder_pending()
        now = time.monotonic()
        for conn, held in list(self._gathered.items()):
            due = conn.timeout
            if not (self.alive or held):  # a service that ends waits a moment for those who have said nothing yet
                due += LINGER_S - self.patience
            if now < due and self.alive:
                break
            if now >= due:
                del self._gathered[conn]
                if held:
                    self.handle_error(None, conn.sock, conn.client, Stalled())
                self._unregister(conn)
        for conn in list(self._parting):
            if now < conn.timeout:
                break
            self._part(conn)

    def _is_complete(self, conn: Any) -> bool:
        """Take what has arrived; return whether a thread can go on, be it because the client has ended its side."""
        held = self._gathered[conn]
        try:
            piece = conn.sock.recv(MOST_GATHERED)
        except BlockingIOError:
            return is_whole(held)
        except OSError:
            piece = b""
        held += piece
        return not piece or is_whole(held)

    def _on_more(self, conn: Any, _: Any) -> None:
        if self._is_complete(conn):
            self.poller.unregister(conn.sock)
            self._hand_over(conn)

    def _hand_over(self, conn: Any) -> None:
        held = self._gathered.pop(conn)
        if not held:  # it was closed without a word
            self._forget(conn)
            return
        if self.alive and (answer := self.at_once(held)) is not None:
            self._answer(conn, answer)
            return
        conn.parser.unreader.unread(bytes(held))
        self.under_way.add(conn)
        super().enqueue_req(conn)

    def at_once(self, held: bytearray) -> bytes | None:
        """Return the answer to a request that needs no thread, short and without waiting; None for all others."""
        return None

    def _answer(self, conn: Any, answer: bytes) -> None:
        """Send a short answer from this thread, and keep the connection where all of it fitted into the socket."""
        try:
            sent = conn.sock.send(answer)
        except OSError:
            sent = 0
        done: Future[bool] = Future()
        done.set_result(sent == len(answer))
        conn.parser.unreader.deadline = math.inf
        self.finish_request(conn, done)

    def _on_parting(self, conn: Any, _: Any) -> None:
        try:
            piece = conn.sock.recv(MOST_GATHERED)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self._parting[conn] += len(piece)
        if not piece or self._parting[conn] > MOST_GATHERED:
            self._part(conn)

    def _part(self, conn: Any) -> None:
        del self._parting[conn]
        self._unregister(conn)

    def _unregister(self, conn: Any) -> None:
        with suppress(KeyError, OSError, ValueError):
            self.poller.unregister(conn.sock)
        self._forget(conn)

    def _forget(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()


def connections_for(threads: int) -> int:
    """Return how many connections to hold at once: 1000 besides one to a thread, where the system lets us have the files.

    The process is given what files it may have. One that ran out of them could not accept, and gunicorn's worker would end.
    """
    wanted = threads + 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted + OWN_FILES if hard == resource.RLIM_INFINITY else min(hard, wanted + OWN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - OWN_FILES))


def is_whole(held: bytes | bytearray) -> bool:
    r"""Return whether a thread can read the request without waiting, or must read it because it is too long to gather.

    What gunicorn will refuse counts as whole, and so does a client that waits for `100 Continue`, which the thread sends.

    >>> is_whole(b"GET / HTTP/1.1\r\n"), is_whole(b"GET / HTTP/1.1\r\n\r\n")
    (False, True)
    """
    if len(held) >= MOST_GATHERED:
        return True
    end = held.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = held[: end + 4].lower()
    if b"\r\nexpect:" in head:
        return True
    if b"\r\ntransfer-encoding:" in head:  # a chunked body ends in an empty line, and few others hold one
        return b"\r\n\r\n" in held[end + 4 :]
    length = _LENGTH.search(head)
    return length is None or len(held) >= end + 4 + int(length[1])


__all__ = ["Intake", "PatientReader", "Stalled", "connections_for", "is_whole"]
