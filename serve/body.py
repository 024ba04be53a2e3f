"""Our own JSON loader: what plain `json.loads` accepts in silence, this refuses with a code.

Bytes are counted as they are read, so a chunked body over the limit is refused rather than cut (werkzeug's LimitedStream
stops at the limit without a word).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NoReturn

from flask import Request
from gunicorn.http.errors import ParseException

from serve.errors import Problem
from serve.intake import MOST_GATHERED, Stalled
from serve.settings import Settings
from serve.turns import aside

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def read_json(request: Request, settings: Settings) -> Any:
    """Return the JSON document of a request's body. Raises Problem for every row of SERVING's table that this can break."""
    if request.mimetype != "application/json" or request.mimetype_params.get("charset", "utf-8").lower() != "utf-8":
        raise Problem("unsupported_media_type", "Content-Type must be application/json")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem("unsupported_media_type", "Content-Encoding is not supported; send the body as it is")
    return parse(read_bytes(request, settings.max_body_bytes), settings)


def read_bytes(request: Request, limit: int) -> bytes:
    """Return the whole body, of at most `limit` bytes, with or without a Content-Length."""
    if request.content_length is not None and request.content_length > limit:
        raise Problem("body_too_large", f"the body may have {limit} bytes, Content-Length says {request.content_length}")
    stream = request.stream
    gathered = request.content_length is not None and request.content_length <= MOST_GATHERED  # it is here already
    parts: list[bytes] = []
    left = limit + 1
    try:
        with nullcontext() if gathered else aside():
            while left > 0 and (part := stream.read(left)):
                parts.append(part)
                left -= len(part)
    except Stalled:
        raise Problem("request_timeout", "the body did not arrive in time") from None
    except (OSError, ParseException):
        raise Problem("malformed_json", "the body ended before it was complete") from None
    if left == 0:
        raise Problem("body_too_large", f"the body may have {limit} bytes")
    body = b"".join(parts)
    if request.content_length is not None and len(body) < request.content_length:
        raise Problem("malformed_json", "the body ended before it was complete")
    return body


def parse(body: bytes, settings: Settings) -> Any:
    """Return the document in `body`; linear in its length whatever it holds."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("malformed_json", f"the body is not UTF-8 (byte {error.start})") from None
    if text.startswith("\ufeff"):
        raise Problem("malformed_json", "the body starts with a byte-order mark")
    try:
        document = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_short(settings.max_number_digits),
            object_pairs_hook=_unique,
        )
    except json.JSONDecodeError as error:
        raise Problem("malformed_json", f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _deep(settings.max_json_depth) from None
    if body.count(b"[") + body.count(b"{") > settings.max_json_depth:
        _check_depth(body, settings.max_json_depth)
    return document


def _check_depth(body: bytes, limit: int) -> None:
    """Raise if valid JSON nests deeper than `limit`: without its strings, each pass over its brackets peels one level."""
    brackets = _STRING.sub(b"", body).translate(_SQUARE, _NO_BRACKETS)
    for _ in range(limit):
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise _deep(limit)


def _deep(limit: int) -> Problem:
    return Problem("too_deep", f"at most {limit} levels of nesting are read")


def _refuse_constant(name: str) -> NoReturn:
    raise Problem("non_finite_number", f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Problem("non_finite_number", "a number is too large for a 64-bit float")
    return value


def _short(limit: int) -> Callable[[str], int]:
    def integer(digits: str) -> int:
        if len(digits.lstrip("-")) > limit:
            raise Problem("number_too_long", f"an integer may have {limit} digits")
        return int(digits)

    return integer


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                shown = name[:64].encode("utf-8", "replace").decode("utf-8")
                raise Problem("duplicate_key", f"the key {shown!r} appears twice in one object")
            seen.add(name)
    return document
