"""One call, from its first try to its last: what is sent again, when, and what is told when it is over.

The exchange is a generator that asks its driver to send or to wait, so that the threaded and the asynchronous client
share every line but the two that send and wait.
"""

from __future__ import annotations

import email.utils
import json
import random
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

try:
    import httpx
except ModuleNotFoundError as error:
    if error.name != "httpx":
        raise
    raise ModuleNotFoundError("dexml.client needs httpx: pip install 'dexml[client]'", name="httpx") from None

T = TypeVar("T")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
REFUSED = frozenset({429, 503})  # nothing was done: anything may be asked again
LOST = frozenset({502, 504})  # a proxy's, which does not know what was done: only what may be done twice is asked again


class DexmlError(Exception):
    """A call that failed: `status` of the answer (None when none came), `code`, `detail`, `request_id` and `retry_after` (s).

    Codes are the service's own; where it did not speak: `connect_failed`, `connection_lost`, `timeout`, `malformed_answer`
    (200 with something else inside), `http_502` and so on (an error that is none of the service's, such as a proxy's page).
    """

    def __init__(self, status: int | None, code: str, detail: str, request_id: str, retry_after: float | None = None) -> None:
        super().__init__(status, code, detail, request_id, retry_after)
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.code}: {self.detail} ({f'status {self.status}, ' if self.status else ''}request {self.request_id})"


@dataclass(frozen=True)
class Call(Generic[T]):
    """One thing to ask: the request's parts, how to read the answer, and whether doing it twice is doing it once."""

    method: str
    path: str
    read: Callable[[Any], T]
    content: bytes | None = None
    params: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    repeatable: bool = True
    timeout: float | None = None  # seconds for everything, waits included; None: the client's
    request_id: str | None = None
    retries: int | None = None  # None: the client's


@dataclass(frozen=True)
class Send:
    """Wish of an exchange: send this, within the time that it says itself."""

    request: httpx.Request


@dataclass(frozen=True)
class Wait:
    """Wish of an exchange: wait so many seconds."""

    seconds: float


Reply = httpx.Response | httpx.TransportError | None
Exchange = Generator[Send | Wait, Reply, T]
Plan = Generator[Call[Any] | Wait, Any, T]  # calls one after the other, each given its answer or its DexmlError


@dataclass(frozen=True)
class Patience:
    """How long a call may take, waits included, and how often it is sent again."""

    timeout_s: float
    retries: int


def perform(plan: Plan[T], build: Callable[..., httpx.Request], patience: Patience) -> Exchange[T]:
    """Make the calls of `plan`, and return what it returns."""
    try:
        step = next(plan)
        while True:
            if isinstance(step, Wait):
                yield step
                step = plan.send(None)
                continue
            try:
                answer = yield from exchange(step, build, patience)
            except DexmlError as error:
                step = plan.throw(error)
            else:
                step = plan.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def exchange(call: Call[T], build: Callable[..., httpx.Request], patience: Patience) -> Exchange[T]:
    """Send `call` until it is answered or `patience` is over, and return what was read. Raises DexmlError otherwise."""
    deadline = time.monotonic() + (patience.timeout_s if call.timeout is None else call.timeout)
    retries = patience.retries if call.retries is None else call.retries
    request_id = call.request_id or f"py_{uuid.uuid4().hex}"
    headers = {"X-Request-ID": request_id, **call.headers}
    for attempt in range(retries + 1):
        left = httpx.Timeout(max(0.001, deadline - time.monotonic()))
        request = build(call.method, call.path, content=call.content, params=call.params or None, headers=headers, timeout=left)
        reply = yield Send(request)
        assert reply is not None
        if isinstance(reply, httpx.Response) and reply.is_success:
            return _read(call, reply, request_id)
        error, again = _failure(reply, request_id, call.repeatable)
        pause = error.retry_after if error.retry_after is not None else 0.0
        # Jitter, lest all who were refused together come back together.
        pause += min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt) * random.uniform(0.5, 1)
        if not again or attempt == retries or time.monotonic() + pause >= deadline:
            raise error
        yield Wait(pause)
    raise AssertionError("an exchange ends in its loop")


def _read(call: Call[T], response: httpx.Response, request_id: str) -> T:
    try:
        return call.read(response.json() if response.content else None)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        what = f"{call.method} {call.path} was answered with something else than documented ({type(error).__name__})"
        raise DexmlError(response.status_code, "malformed_answer", what, _id_of(response, request_id)) from error


def _failure(reply: httpx.Response | httpx.TransportError, request_id: str, repeatable: bool) -> tuple[DexmlError, bool]:
    """Return the error to raise, and whether the call may be sent again."""
    if isinstance(reply, httpx.Response):
        error, is_ours = _refusal(reply, request_id)
        # A 504 of the service itself is the answer: its own deadline passed.
        return error, reply.status_code in REFUSED or (reply.status_code in LOST and repeatable and not is_ours)
    words = str(reply) or type(reply).__name__
    if isinstance(reply, httpx.ConnectError | httpx.ConnectTimeout):
        error, again = DexmlError(None, "connect_failed", words, request_id), True
    elif isinstance(reply, httpx.TimeoutException):
        error, again = DexmlError(None, "timeout", f"no answer in time ({type(reply).__name__})", request_id), False
    elif isinstance(reply, httpx.NetworkError | httpx.RemoteProtocolError):
        error, again = DexmlError(None, "connection_lost", words, request_id), repeatable
    else:
        error, again = DexmlError(None, "bad_request", words, request_id), False
    error.__cause__ = reply
    return error, again


def _refusal(response: httpx.Response, request_id: str) -> tuple[DexmlError, bool]:
    """Return the error of an answer that is not 2xx, and whether it is the service's own document."""
    status, code, detail, is_ours = response.status_code, "", "", False
    try:
        document = json.loads(response.content)
        code, detail, is_ours = str(document["error"]["code"]), str(document["detail"]), True
    except (ValueError, KeyError, TypeError, RecursionError):
        code, detail = f"http_{status}", response.reason_phrase or "an answer that is none of the service's"
    return DexmlError(status, code, detail, _id_of(response, request_id), retry_after(response.headers)), is_ours


def _id_of(response: httpx.Response, request_id: str) -> str:
    return str(response.headers.get("X-Request-ID", request_id))


def retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds of a Retry-After header, given as such or as an HTTP date; None where there is none to read."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


__all__ = ["Call", "DexmlError", "Exchange", "Patience", "Plan", "Reply", "Send", "Wait", "httpx", "perform", "retry_after"]
