"""OpenTelemetry: a span for each request under the caller's trace, and nothing sent anywhere that was not named."""

from __future__ import annotations

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dexml.__main__ import main

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "words that nobody else sees"


@pytest.fixture
def collector():
    """Where spans may be sent: an OTLP endpoint that keeps what it gets."""
    received = []

    class Keeper(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Keeper)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.received = received
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4318/v1/traces", "ftp://a/b", "4318", "http://"])
@pytest.mark.parametrize("extra", ["without the extra", "with it"])
def test_what_cannot_be_is_one_line_before_anything_starts(tmp_path, monkeypatch, capsys, extra: str, endpoint: str):
    absent = extra != "with it"
    if absent:
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    else:
        pytest.importorskip("opentelemetry.sdk")
        if endpoint.endswith("traces"):
            endpoint = "//127.0.0.1"
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(tmp_path), "--otel", endpoint])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and "--otel: " in line and ("dexml[otel]" if absent else "is no endpoint") in line


def test_a_request_is_a_span_with_its_stages(make_app):
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from serve import tracing

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    app = make_app()
    app.extensions["dexml"].worker.wait_until_loaded(10)
    tracing.install(app, provider)
    client = app.test_client()
    start = time.time_ns()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "mine-1"}
    reply = client.post("/v1/search", json={"queries": [f"slow 100 {SECRET}", "sort"]}, headers=headers)
    assert reply.status_code == 200
    spans = {span.name: span for span in kept.get_finished_spans()}
    whole = spans["POST /v1/search"]
    assert set(spans) == {"POST /v1/search", "queue", "encode", "retrieve", "rescore"}
    assert f"{whole.context.trace_id:032x}" == TRACE and f"{whole.parent.span_id:016x}" == PARENT
    assert reply.headers["traceparent"] == f"00-{TRACE}-{whole.context.span_id:016x}-01", "passed on"
    assert dict(whole.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/search",
        "http.response.status_code": 200,
        "dexml.request_id": "mine-1",
        "dexml.queries": 2,
    }
    for name in ("queue", "encode", "retrieve", "rescore"):
        span = spans[name]
        assert span.parent.span_id == whole.context.span_id
        assert start - 2e6 <= span.start_time <= span.end_time <= whole.end_time + 2e6
    assert spans["encode"].end_time - spans["encode"].start_time >= 100e6
    assert spans["queue"].end_time <= spans["encode"].start_time + 1e6
    assert SECRET not in "".join(span.to_json() for span in spans.values())
    kept.clear()
    assert client.get("/livez").status_code == client.get("/metrics").status_code == 200 and not kept.get_finished_spans()
    assert client.get("/nothing", headers={"traceparent": "nonsense"}).status_code == 404
    assert client.post("/v1/search", json={"queries": ["broken"]}).status_code == 500
    unknown, broken = kept.get_finished_spans()
    assert unknown.name == "GET other" and unknown.parent is None and unknown.status.is_unset
    assert not broken.status.is_ok and broken.status.description == "internal" and "passwd" not in broken.to_json()


def test_a_process_sends_spans_where_it_was_told_and_nowhere_else(collector, running_servers, monkeypatch):
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    address = f"http://127.0.0.1:{collector.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{address}/of-the-environment")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment=test")
    base = ["tests/serve/stand_in.py", "0"]
    with running_servers([*base, f"otel={address}/v1/traces"], base) as (traced, silent):
        for server in (traced, silent):
            assert server.post({"queries": [SECRET]}).status == 200
    assert {path for path, _ in collector.received} == {"/v1/traces"}, "and the last ones as it ends"
    sent = ExportTraceServiceRequest.FromString(collector.received[0][1]).resource_spans[0]
    facts = {fact.key: fact.value.string_value for fact in sent.resource.attributes}
    assert facts["service.name"] == "dexml" and facts["deployment"] == "test"
    assert "POST /v1/search" in {span.name for spans in sent.scope_spans for span in spans.spans}
    assert SECRET.encode() not in b"".join(body for _, body in collector.received)
