"""The routes: what is asked, checked, handed to the worker, and answered."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from http import HTTPStatus
from typing import Any, TypeVar, get_type_hints

from flask import Flask, Response, current_app, g, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, ValidationError

from dexml import __version__
from serve.answers import ask_of, results_of
from serve.body import read_json
from serve.errors import Problem, from_validation
from serve.guard import check
from serve.hosts import is_allowed
from serve.keys import Keys
from serve.metrics import Metrics
from serve.repeated import Repeated
from serve.schemas import Info, SearchRequest, SearchResponse
from serve.settings import Settings
from serve.turns import RECEIVED
from serve.worker import Worker

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# The statuses that operations document, each of which a test provokes: what any may answer, one that reads a body, one that
# waits for the owner of the model, and all of them with 404.
ANSWERS = (401, 421, 500, 503)
READS_JSON = (400, 408, 413, 415, 422)
ASKS = (429, 504)
REFUSALS = (*ANSWERS, *READS_JSON, *ASKS, 404)
COMMON = (*SECURITY_HEADERS.items(), ("Cache-Control", "no-store"))  # what every answer has

View = TypeVar("View", bound=Callable[..., Any])


@dataclass(frozen=True)
class Service:
    """What the routes share: the limits, the owner of the model, the keys, and what is counted."""

    settings: Settings
    worker: Worker
    keys: Keys | None
    metrics: Metrics
    repeated: Repeated = field(default_factory=Repeated)


def service() -> Service:
    """Return the service of the application that is answering."""
    found = current_app.extensions["dexml"]
    assert isinstance(found, Service)
    return found


def request_id_of(given: str) -> str:
    """Return the id a client gave, where it is one, or a new one."""
    return given if REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def reads_json(view: Callable[..., Response]) -> Callable[..., Response]:
    """Give `view` its `body`, read by our own loader and checked against the model it is annotated with, and its `path`."""
    hints = get_type_hints(view)
    model: type[BaseModel] = hints["body"]
    of_path: type[BaseModel] | None = hints.get("path")

    @wraps(view)
    def read(**names: Any) -> Response:
        settings = service().settings
        document = read_json(request, settings)
        try:
            body = model.model_validate(document, context={"settings": settings})
        except ValidationError as error:
            raise from_validation(error) from None
        return view(body=body) if of_path is None else view(body=body, path=of_path(**names))

    read.__delay_validate_request__ = True  # type: ignore[attr-defined]  # flask-openapi3 documents, we validate
    return read


def answer(document: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """Return a 200 with JSON that holds no NaN and no infinity."""
    return Response(json.dumps(document, allow_nan=False), 200, headers, content_type="application/json")


def refusals(*codes: int) -> dict[int | str, Any]:
    """Return the OpenAPI entry of each error status."""
    schema = {"$ref": "#/components/schemas/ProblemBody"}
    content = {"application/problem+json": {"schema": schema}}
    return {code: {"description": HTTPStatus(code).phrase, "content": content} for code in sorted(codes)}


api = APIBlueprint("v1", __name__)


@api.post(
    "/v1/search",
    summary="The best labels for each text or embedding",
    tags=[Tag(name="search")],
    responses={200: SearchResponse, **refusals(*REFUSALS)},
)
@reads_json
def search(body: SearchRequest) -> Response:
    """Return the top labels with scores and probabilities; the normaliser says what the probabilities sum over."""
    worker, settings = service().worker, service().settings
    ask = ask_of(body, worker.check_ready(), settings)
    g.ticket = ticket = worker.answer(ask, g.received + (body.timeout_ms or settings.deadline_ms) / 1000)
    answered = time.monotonic()
    assert ticket.found is not None
    found = ticket.found
    results = results_of(body, found)
    timing = {"queue": ticket.started - ticket.submitted}
    timing |= {stage: found.seconds.get(stage, 0.0) for stage in ("encode", "retrieve", "rescore")}
    timing["total"] = time.monotonic() - g.received
    timing_ms = {stage: round(max(0.0, seconds) * 1000, 3) for stage, seconds in timing.items()}
    tokens = sum(found.tokens)
    document = {
        "id": g.request_id,
        "model": found.model,
        "index_version": found.version,
        "results": results,
        "shards": {"total": found.shards, "ok": found.shards - found.missing, "failed": found.missing},
        "partial": found.missing > 0,
        "timing_ms": timing_ms,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    response = answer(document, {"Server-Timing": ", ".join(f"{stage};dur={ms}" for stage, ms in timing_ms.items())})
    service().metrics.staged("serialize", time.monotonic() - answered)
    return response


@api.get(
    "/v1/info",
    summary="What is being served",
    tags=[Tag(name="search")],
    responses={200: Info, **refusals(*ANSWERS)},
)
def info() -> Response:
    """Return the model, the index, the choices made for this machine, and the limits."""
    serving = service().worker.check_ready()
    about = serving.info
    document = {
        "name": "dexml",
        "version": __version__,
        "model": about["model"],
        "index_version": serving.store.name,
        "labels": len(serving.store.live.labels),
        "dimension": serving.dimension,
        "exact": serving.exact,
        "examples": about.get("examples", []),
        "writes": _writes(service()),
        "keys": service().keys is not None and not service().settings.anonymous_read,
        "limits": service().settings.limits(),
        "bundle": about,
    }
    return answer(document)


def _writes(of: Service) -> str:
    if not of.settings.writable:
        return "off"
    return "open" if of.keys is None else "key"


@api.get("/openapi.json", doc_ui=False)
def openapi() -> Response:
    """Return this API in OpenAPI 3.1."""
    return answer(current_app.api_doc)  # type: ignore[attr-defined]


@api.get("/", doc_ui=False)
def page() -> Response:
    """Return the search page."""
    return current_app.send_static_file("index.html")


def install(app: Flask) -> None:
    """Give every request its id and clock, refuse those for another host, and give every answer its headers."""

    def begin() -> None:
        g.received = request.environ[RECEIVED]
        g.request_id = request_id_of(request.headers.get("X-Request-ID", ""))
        host, settings = request.headers.get("Host"), service().settings
        # HTTP/1.0 need not name a host; a browser always does.
        if host is not None and not is_allowed(host, settings.host, settings.allowed_hosts):
            detail = "the Host header names another machine; --allow-host NAME at the start of the service allows it"
            raise Problem("forbidden_host", detail)
        check(service().keys, anonymous_read=settings.anonymous_read)

    def finish(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.request_id
        own = {name.lower() for name, _ in response.headers}  # a file has its own Cache-Control, the docs their own policy
        timing = ("Server-Timing", f"total;dur={(time.monotonic() - g.received) * 1000:.3f}")
        response.headers.extend([pair for pair in (*COMMON, timing) if pair[0].lower() not in own])
        return response

    app.before_request(begin)
    app.after_request(finish)
