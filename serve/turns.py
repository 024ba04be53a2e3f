"""Requests take turns at Python, so that the owner of the model gets its own.

Threads that all want the interpreter have it for at most five milliseconds each, in no order: with sixteen requests about,
the owner of the model waits for several of them after every call that lets go of it, and its batches take twice as long. So
one request at a time is read, checked or written; the others wait for a lock, which costs the interpreter nothing. Whatever
waits for something else (an answer, a body) steps aside meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

RECEIVED = "dexml.received"  # in a WSGI environment: when the request was there, in monotonic seconds
PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics", "/v2/health/live", "/v2/health/ready"})

_held = threading.local()


class Turns:
    """A lock that knows how many have it or wait for it."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._about: set[int] = set()  # threads; its changes are atomic

    @property
    def wanted(self) -> int:
        """Return how many threads have the turn or wait for it."""
        return len(self._about)

    def acquire(self) -> None:
        """Wait for the turn."""
        self._about.add(threading.get_ident())
        self._turn.acquire()

    def release(self) -> None:
        """Give the turn to another."""
        self._about.discard(threading.get_ident())
        self._turn.release()


class InTurn:
    """A WSGI application that lets one request at a time into another; sending what that returns takes no turn."""

    def __init__(self, inner: Application, turns: Turns) -> None:
        self._inner = inner
        self._turns = turns

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer when it is this request's turn; a probe is always next."""
        environ[RECEIVED] = time.monotonic()
        if environ["PATH_INFO"] in PROBES:
            return self._inner(environ, start_response)
        self._turns.acquire()
        _held.turns = self._turns
        try:
            return self._inner(environ, start_response)
        finally:
            _held.turns = None
            self._turns.release()


@contextmanager
def aside() -> Iterator[None]:
    """Let others have the turn during what waits; it is this thread's again afterwards. Without one, do nothing."""
    turns: Turns | None = getattr(_held, "turns", None)
    if turns is None:
        yield
        return
    turns.release()
    try:
        yield
    finally:
        turns.acquire()


__all__ = ["RECEIVED", "InTurn", "Turns", "aside"]
