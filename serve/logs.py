"""What the service writes to stderr: a line of text or of JSON for each event, and at level info for each request.

No line holds a query, a label, a path, a header or a key: a request is told by its id, its route and its numbers. A hash of the
text would not hide it, since short texts can be guessed. What has come from outside cannot start a line or move the cursor.
"""

from __future__ import annotations

import json
import logging
import re
import time
from datetime import UTC, datetime
from typing import Literal

from flask import Flask, Response, g, request

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

log = logging.getLogger("dexml.access")

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


def printable(text: str) -> str:
    """Return `text` with everything escaped that is no visible character: line ends, ANSI sequences, turns of direction."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Text(logging.Formatter):
    """`2026-11-25T10:30:55.123Z INFO dexml.access answered request_id=… status=200`; a traceback's lines begin with `|`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line, and a traceback's lines."""
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.name} {printable(record.getMessage())} {printable(fields)}".rstrip()
        return "\n".join([line, *(f"| {printable(part)}" for part in _traceback(self, record).splitlines())])


class Json(logging.Formatter):
    """One JSON object with time, level, logger, message, and the fields of a request; a traceback is one of its strings."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line."""
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= _fields(record)
        if traceback := _traceback(self, record):
            entry["traceback"] = traceback
        return json.dumps(entry)  # in ASCII: what JSON leaves as it is could still be a terminal's


FORMATS: dict[LogFormat, type[logging.Formatter]] = {"text": Text, "json": Json}


def configure(form: LogFormat, level: LogLevel) -> None:
    """Send everything that is logged in this process, by libraries too, to stderr in this form.

    `level` is for our own loggers; others speak from warning on.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATS[form]())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("dexml").setLevel(level.upper())


def _fields(record: logging.LogRecord) -> dict[str, object]:
    found: dict[str, object] = getattr(record, "fields", {})
    return found


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""


def install(app: Flask) -> None:
    """Log every answer of `app`: those of probes and of /metrics, which come every few seconds, at level debug."""

    def finish(response: Response) -> Response:
        level = logging.DEBUG if request.blueprint == "probes" else logging.INFO
        if response.status_code in (500, 507):
            level = logging.ERROR  # our answer tells the client that the request id finds it here
        if not log.isEnabledFor(level):
            return response
        fields = {
            "request_id": g.request_id,
            "method": request.method,
            "route": None if request.url_rule is None else request.url_rule.rule,
            "status": response.status_code,
            "code": g.get("problem"),
            "duration_ms": round((time.monotonic() - g.received) * 1000, 3),
            "bytes": response.content_length,
            "queries": len(g.ticket.ask) if "ticket" in g else None,
            "trace_id": trace_id(request.headers.get("traceparent", "")),
        }
        log.log(level, "answered", extra={"fields": {name: value for name, value in fields.items() if value is not None}})
        return response

    app.after_request(finish)


def trace_id(traceparent: str) -> str | None:
    """Return the trace that a W3C `traceparent` header names."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found else None
