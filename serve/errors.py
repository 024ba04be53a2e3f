"""Every answer that is not 2xx: problem details (RFC 9457) with an OpenAI-style `error` object beside them.

No answer carries HTML, a traceback, a path or the text of an exception that is not ours.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, g, request
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import HTTPException

log = logging.getLogger("dexml.serve")

CODES: Mapping[str, tuple[int, str]] = {
    "malformed_json": (400, "The body is not JSON"),
    "non_finite_number": (400, "A number is not finite"),
    "duplicate_key": (400, "A key appears twice"),
    "too_deep": (400, "The JSON is nested too deeply"),
    "number_too_long": (400, "An integer has too many digits"),
    "bad_request": (400, "The request cannot be read"),
    "unauthenticated": (401, "A key is needed"),
    "forbidden": (403, "This is not allowed here"),
    "not_found": (404, "Nothing is here"),
    "method_not_allowed": (405, "The method is not allowed here"),
    "request_timeout": (408, "The request did not arrive in time"),
    "conflict": (409, "It contradicts what is there"),
    "version_unusable": (409, "The version cannot answer"),
    "precondition_failed": (412, "The labels have changed"),
    "batch_too_large": (413, "Too many queries or labels in one request"),
    "body_too_large": (413, "The body is too large"),
    "uri_too_long": (414, "The request line is too long"),
    "unsupported_media_type": (415, "The body must be plain JSON"),
    "forbidden_host": (421, "This host is not served here"),
    "schema": (422, "The body does not have the documented form"),
    "empty": (422, "Something is empty"),
    "invalid_text": (422, "A text holds characters that no text has"),
    "text_too_long": (422, "A text is too long"),
    "too_many_tokens": (422, "A text has more tokens than the model reads"),
    "top_k_out_of_range": (422, "top_k is out of range"),
    "candidates_out_of_range": (422, "candidates is out of range"),
    "temperature_out_of_range": (422, "temperature is out of range"),
    "diversity_out_of_range": (422, "diversity is out of range"),
    "precision_out_of_range": (422, "min_precision is out of range"),
    "timeout_out_of_range": (422, "timeout_ms is out of range"),
    "dimension_mismatch": (422, "An embedding has the wrong dimension"),
    "zero_vector": (422, "An embedding has no direction"),
    "exact_unavailable": (422, "This index answers approximately"),
    "why_unavailable": (422, "No training queries are kept here"),
    "key_reused": (422, "The idempotency key was used for another request"),
    "partial_unavailable": (422, "The answer cannot be partial"),
    "calibration_unavailable": (422, "This bundle is not calibrated"),
    "headers_too_large": (431, "The header fields are too large"),
    "overloaded": (429, "Too many requests at once"),
    "internal": (500, "Something went wrong on our side"),
    "not_implemented": (501, "This is not supported"),
    "not_ready": (503, "The model is still loading"),
    "draining": (503, "The service is shutting down"),
    "shard_unavailable": (503, "A part of the labels does not answer"),
    "deadline_exceeded": (504, "The deadline passed"),
    "insufficient_storage": (507, "The disk is full"),
}

BY_STATUS: Mapping[int, str] = {
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    414: "uri_too_long",
    415: "unsupported_media_type",
    431: "headers_too_large",
    501: "not_implemented",
}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: a JSON pointer into the body, the code and the words."""

    pointer: str
    code: str
    message: str

    @property
    def param(self) -> str | None:
        """Return the top-level field, the way OpenAI's clients expect it."""
        return self.pointer.split("/")[1] if self.pointer.startswith("/") else None

    def sentence(self) -> str:
        """Return the fault as one sentence that names the field."""
        name = self.pointer.lstrip("/").replace("/", ".")
        return f"{name} {self.message}" if name else self.message


class Problem(Exception):
    """A refusal: a `code` of the table, a `detail` in words, the faults found and extra headers."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.status, self.title = CODES[code]
        self.faults = tuple(faults)
        self.detail = detail or (self.faults[0].sentence() if self.faults else self.title)
        self.headers = dict(headers or {})


class ErrorObject(BaseModel):
    """The shape that clients of OpenAI's API read."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorItem(BaseModel):
    """One fault of the body."""

    pointer: str
    code: str
    message: str


class ProblemBody(BaseModel):
    """Problem details (RFC 9457) with our extensions; the body of every answer that is not 2xx."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[ErrorItem]
    error: ErrorObject


def kind(status: int) -> str:
    """Return the OpenAI error type of a status."""
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return "authentication_error" if status == HTTPStatus.UNAUTHORIZED else "permission_error"
    return "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"


def body_of(problem: Problem, instance: str, request_id: str) -> dict[str, Any]:
    """Return the JSON body of a problem (SERVING §1.2)."""
    return {
        "type": f"urn:dexml:error:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": instance,
        "request_id": request_id,
        "errors": [{"pointer": f.pointer, "code": f.code, "message": f.message} for f in problem.faults],
        "error": {
            "message": problem.detail,
            "type": kind(problem.status),
            "param": problem.faults[0].param if problem.faults else None,
            "code": problem.code,
        },
    }


def respond(problem: Problem) -> Response:
    """Return the HTTP answer of a problem, and leave its code in `g` for those who count."""
    g.problem = problem.code
    body = json.dumps(body_of(problem, request.path, g.get("request_id", "")))
    return Response(body, problem.status, problem.headers, content_type="application/problem+json")


def from_validation(error: ValidationError) -> Problem:
    """Return pydantic's complaints as a problem whose code is that of the first one."""
    faults = []
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:16]:
        pointer = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in item["loc"])
        pointer = pointer.encode("utf-8", "replace").decode("utf-8")[:256]
        if item["type"] in CODES:
            faults.append(Fault(pointer, item["type"], item["msg"]))
        else:
            faults.append(Fault(pointer, "schema", _in_words(item["type"], item["msg"])))
    return Problem(faults[0].code, faults=faults)


def _in_words(kind_of_error: str, message: str) -> str:
    if kind_of_error == "extra_forbidden":
        return "is not a known field"
    if kind_of_error == "missing":
        return "is required"
    return message.replace("Input should be", "must be", 1)


def install(app: Flask) -> None:
    """Make every error of `app` a problem document."""

    def on_problem(problem: Problem) -> Response:
        return respond(problem)

    def on_http(error: HTTPException) -> Response:
        status = error.code or 500
        code = BY_STATUS.get(status, "bad_request" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "internal")
        headers = {}
        detail = ""
        methods = getattr(error, "valid_methods", None)
        if code == "method_not_allowed" and methods:
            headers["Allow"] = ", ".join(sorted(methods))
            detail = f"{request.method} is not allowed here; allowed: {headers['Allow']}"
        return respond(Problem(code, detail, headers=headers))

    def on_bug(error: Exception) -> Response:
        log.error("request %s failed", g.get("request_id", "-"), exc_info=error)
        return respond(Problem("internal", "an unexpected error; the request id finds it in the server's log"))

    app.register_error_handler(Problem, on_problem)
    app.register_error_handler(HTTPException, on_http)
    app.register_error_handler(Exception, on_bug)
