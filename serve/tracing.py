"""OpenTelemetry: a span for each request, with the stages of its batch below, under the trace that `traceparent` names.

Only where the operator names the endpoint that spans are sent to; nothing else in the service calls anyone. Spans hold routes
and numbers, no texts.
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, g, request

from dexml import __version__
from dexml.errors import InputError
from serve.tickets import Ticket

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    raise InputError("--otel: OpenTelemetry is not installed: pip install 'dexml[otel]'") from error


def check(endpoint: str) -> None:
    """Raise InputError for what is no endpoint; that this module could be imported says that the extra is there."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"--otel: {endpoint[:100]!r} is no endpoint; http://127.0.0.1:4318/v1/traces would be one")


def provider(endpoint: str) -> Any:
    """Return what makes spans and sends them to `endpoint` (OTLP over HTTP); OTEL_SERVICE_NAME and the like may say more."""
    ours = Resource({SERVICE_NAME: "dexml", SERVICE_VERSION: __version__})
    made = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return made


def install(app: Flask, tracers: Any) -> None:
    """Trace every request of `app` but probes, by a tracer provider."""
    tracer = tracers.get_tracer("dexml", __version__)
    context = TraceContextTextMapPropagator()

    def begin() -> None:
        if request.blueprint == "probes":
            return
        route = "other" if request.url_rule is None else request.url_rule.rule
        attributes = {"http.request.method": request.method, "http.route": route, "dexml.request_id": g.request_id}
        parent = context.extract({"traceparent": request.headers.get("traceparent", "")})
        name = f"{request.method} {route}"
        g.span = tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=_epoch_ns(g.received))

    def finish(response: Response) -> Response:
        if "span" not in g:
            return response
        within = set_span_in_context(g.span)
        if "ticket" in g:
            g.span.set_attribute("dexml.queries", len(g.ticket.ask))
            for stage, start, end in stages(g.ticket):
                tracer.start_span(stage, within, start_time=_epoch_ns(start)).end(_epoch_ns(end))
        g.span.set_attribute("http.response.status_code", response.status_code)
        if response.status_code >= 500:
            g.span.set_status(Status(StatusCode.ERROR, g.get("problem")))
        context.inject(response.headers, within)
        g.span.end()
        return response

    app.before_request(begin)
    app.after_request(finish)


def stages(ticket: Ticket) -> list[tuple[str, float, float]]:
    """Return name, start and end (monotonic seconds) of a search's stages: its wait, then those of its batch."""
    if ticket.found is None:
        return []
    found = [("queue", ticket.submitted, ticket.started)]
    for stage in ("encode", "retrieve", "rescore"):
        if (seconds := ticket.found.seconds.get(stage)) is not None:
            found.append((stage, found[-1][2], found[-1][2] + seconds))
    return found


def _epoch_ns(monotonic: float) -> int:
    return time.time_ns() - int((time.monotonic() - monotonic) * 1e9)
