"""Requests that a client repeats because it never saw the answer: by their Idempotency-Key they are done once."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from serve.errors import Problem

KEY = re.compile(r"[!-~]{1,255}")
MOST = 10_000  # keys remembered: the last ones used


class Repeated:
    """The answers to the last requests that had keys, in memory: a restart forgets them.

    That does no harm to writes of labels, which leave the same labels when they are made twice.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._answers: OrderedDict[str, tuple[bytes, dict[str, Any] | None]] = OrderedDict()  # None: being made
        self._lock = threading.Lock()

    def answer(self, key: str, asked: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what `make` returns, or returned when this was `asked` under this key; what it raises is not kept.

        Raises Problem for a key that is none, one used for something else, and one whose first request is still running.
        """
        if not KEY.fullmatch(key):
            raise Problem("schema", "an Idempotency-Key is 1 to 255 visible ASCII characters")
        digest = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            if key in self._answers:
                before, document = self._answers[key]
                if before != digest:
                    raise Problem("key_reused", "another request had this Idempotency-Key; take a new one")
                if document is None:
                    raise Problem("conflict", "the first request with this Idempotency-Key is not answered yet")
                self._answers.move_to_end(key)
                return document
            self._answers[key] = digest, None
        try:
            document = make()
        except BaseException:
            with self._lock:
                self._answers.pop(key, None)
            raise
        with self._lock:
            self._answers[key] = digest, document
            while len(self._answers) > self._most:
                self._answers.popitem(last=False)
        return document


__all__ = ["Repeated"]
