"""What is counted: that the numbers are right, that their labels are few, and that the dashboard asks for what is there."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "dexml.json"
SECRET = "a query that nobody else sees"


class Page:
    """A scraped page, parsed: `page("rejected_total", reason="deadline")` is the sum of the samples that fit."""

    def __init__(self, text: str):
        self.text = text
        self.families = list(parse(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        fitting = [s.value for s in self.samples if s.name == f"dexml_{name}" and labels.items() <= s.labels.items()]
        return sum(fitting)

    def series(self, name: str) -> list[dict[str, str]]:
        return [sample.labels for sample in self.samples if sample.name == f"dexml_{name}"]


@pytest.fixture
def app(make_app):
    app = make_app(max_inflight=2)
    assert app.extensions["dexml"].worker.wait_until_loaded(10)
    return app


def scrape(app) -> Page:
    reply = app.test_client().get("/metrics")
    assert reply.status_code == 200 and reply.content_type.startswith("text/plain; version=0.0.4")
    return Page(reply.text)


def search(app, *texts: str, **fields):
    return app.test_client().post("/v1/search", json={"queries": list(texts), **fields})


def test_answers_are_counted_by_route_method_and_status(app):
    for _ in range(3):
        assert search(app, "sort", "cluster").status_code == 200
    assert search(app, "sort", top_k=0).status_code == 422
    assert app.test_client().post("/v1/search", data="{", content_type="application/json").status_code == 400
    assert search(app, "broken").status_code == 500
    assert app.test_client().get("/v1/search").status_code == 405
    page = scrape(app)
    for status, count in (("200", 3), ("422", 1), ("400", 1), ("500", 1)):
        assert page("http_requests_total", route="/v1/search", method="POST", status=status) == count
    assert page("http_requests_total", route="other", method="GET", status="405") == 1
    assert page("rejected_total", reason="invalid") == 2 and page("rejected_total") == 2
    assert page("http_request_duration_seconds_count", route="/v1/search") == 6
    assert page("batch_size_count") == 3 and page("batch_size_sum") == 6
    assert page("batch_tokens_sum") == 6 and page("queue_wait_seconds_count") == 3
    for stage in ("encode", "retrieve", "rescore", "serialize"):
        assert page("stage_duration_seconds_count", stage=stage) == 3
    assert page("index_labels") == 10 and page("index_tombstones") == 0 and page("worker_alive") == 1


def test_the_seconds_are_those_that_passed(app):
    start = time.monotonic()
    assert search(app, "slow 300").status_code == 200
    passed = time.monotonic() - start
    page = scrape(app)
    assert 0.3 <= page("stage_duration_seconds_sum", stage="encode") <= passed
    assert 0.3 <= page("http_request_duration_seconds_sum", route="/v1/search") <= passed
    assert page("http_request_duration_seconds_bucket", route="/v1/search", le="0.25") == 0


def test_a_full_queue_and_its_depth(app):
    with ThreadPoolExecutor(6) as pool:
        replies = [pool.submit(search, app, "slow 600")]
        time.sleep(0.15)  # it is a batch by itself by then
        replies += [pool.submit(search, app, "slow 10") for _ in range(5)]
        time.sleep(0.15)
        during = scrape(app)
        statuses = sorted(reply.result().status_code for reply in replies)
    assert statuses == [200, 200, 429, 429, 429, 429]
    assert during("inflight_requests") == 2 and during("queue_depth") == 1
    page = scrape(app)
    assert page("queue_wait_seconds_sum") > 0.1, "the second waited for the first"
    assert page("rejected_total", reason="queue_full") == page("http_requests_total", status="429") == 4
    assert page("inflight_requests") == page("queue_depth") == 0


def test_what_expires_is_counted_and_never_encoded(app):
    blocker = threading.Thread(target=search, args=(app, "slow 300"))
    blocker.start()
    time.sleep(0.1)
    assert search(app, SECRET, timeout_ms=50).status_code == 504
    blocker.join()
    page = scrape(app)
    assert page("rejected_total", reason="deadline") == page("http_requests_total", status="504") == 1
    assert page("batch_size_sum") == 1, "the blocker's alone"


def test_loading_and_draining(make_app, stand_in):
    gate = threading.Event()

    def open_late():
        gate.wait(10)
        return stand_in.StandIn()

    app = make_app(open_late)
    assert search(app, "sort").status_code == 503 and app.test_client().get("/readyz").status_code == 503
    page = scrape(app)
    assert page("rejected_total", reason="not_ready") == 1, "a probe is no request that was rejected"
    assert page("worker_alive") == 1 and page.series("index_labels") == []
    gate.set()
    worker = app.extensions["dexml"].worker
    worker.wait_until_loaded(10)
    worker.stop()
    assert search(app, "sort").status_code == 503
    page = scrape(app)
    assert page("rejected_total", reason="draining") == 1 and page("index_load_seconds") > 0


def test_both_forms_can_be_parsed_and_say_the_same(app):
    search(app, "sort")
    plain = scrape(app)
    reply = app.test_client().get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert reply.content_type.startswith("application/openmetrics-text")
    families = {family.name for family in parse_openmetrics(reply.text)}
    assert {"dexml_http_requests", "dexml_queue_depth", "dexml_stage_duration_seconds"} <= families
    undocumented = [
        family.name for family in plain.families if not family.documentation and not family.name.endswith("_created")
    ]
    assert undocumented == []


def test_applications_of_one_process_count_apart(make_app):
    one, other = make_app(), make_app()
    for app in (one, other):
        app.extensions["dexml"].worker.wait_until_loaded(10)
    search(one, "sort")
    assert scrape(one)("batch_size_count") == 1 and scrape(other)("batch_size_count") == 0


def test_a_scrape_waits_for_nobody(app):
    worker = app.extensions["dexml"].worker
    with ThreadPoolExecutor(1) as pool, worker._changed:  # the lock of the queue, held as by a thread that hangs
        page = pool.submit(scrape, app).result(5)
    assert page("worker_alive") == 1


def test_swaps_are_counted_by_result(app):
    metrics = app.extensions["dexml"].metrics
    assert scrape(app)("index_swap_total") == 0 and len(scrape(app).series("index_swap_total")) == 3
    for result in ("ok", "refused", "ok"):
        metrics.swapped(result)
    page = scrape(app)
    assert page("index_swap_total", result="ok") == 2 and page("index_swap_total", result="refused") == 1


def test_where_keys_are_asked_for_the_public_page_needs_one(make_app, tmp_path):
    from serve import keys

    reader = keys.add(tmp_path / "keys.json", "scraper", "read")
    app = make_app(keys=tmp_path / "keys.json")
    statuses = [app.test_client().get("/metrics", headers={"X-API-Key": key}).status_code for key in ("", "x", reader)]
    assert statuses == [401, 401, 200]
    page = Page(app.test_client().get("/metrics", headers={"X-API-Key": reader}).text)
    assert page("rejected_total", reason="auth") == 2 and reader not in page.text


def test_every_problem_has_a_reason_or_is_none():
    from serve.errors import CODES
    from serve.metrics import reason_of

    reasons = {code: reason_of(code) for code in CODES}
    assert {code for code, reason in reasons.items() if reason is None and CODES[code][0] < 500} <= {
        "not_found",
        "method_not_allowed",
        "conflict",
        "precondition_failed",
        "version_unusable",
    }
    assert reasons["overloaded"] == "queue_full" and reasons["deadline_exceeded"] == "deadline"
    assert reasons["malformed_json"] == reasons["schema"] == "invalid" and reasons["internal"] is None


@pytest.fixture(scope="module")
def written(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, running_servers):
    """A real bundle, served by the console command, that takes writes."""
    bundle = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("metrics") / "bundle")
    with running_servers(["-m", "dexml", "serve", str(bundle), "--port", "0", "--admin-port", "0", "--writable"]) as (server,):
        server.bundle = bundle
        yield server


def test_a_real_service_counts_its_writes(written):
    page = Page(written.probe("/metrics").body.decode())
    labels, log = page("index_labels"), page("wal_bytes")
    assert labels == 10 and log > 0 and page("snapshot_age_seconds") > 0 and page("index_load_seconds") > 0
    (version,) = page.series("index_info")
    assert version["version"] == "v000001" and version["device"] == "cpu" and re.fullmatch("[0-9a-f]{16}", version["sha256"])
    (build,) = page.series("build_info")
    assert set(build) == {"version", "torch", "faiss", "cuda"} and build["torch"]
    assert page("process_resident_memory_bytes") > 1e6 and page("process_open_fds") > 3
    three = {"labels": [{"id": f"new {number}", "text": "points"} for number in range(3)]}
    assert written.post(three, "/v1/labels").status == 200 and written.post(three, "/v1/labels").status == 200
    assert written.post({"ids": ["new 0", "never there"]}, "/v1/labels/delete").status == 200
    unknown = written.post({"labels": [{"id": "x", "text": "☃"}]}, "/v1/labels")
    assert written.post({"queries": ["points"]}).status == 200
    page = Page(written.probe("/metrics").body.decode())
    assert page("label_writes_total", op="upsert", result="ok") == 6
    assert page("label_writes_total", op="delete", result="ok") == 1
    assert page("label_writes_total", op="upsert", result="schema") == (unknown.status == 422)
    assert page("index_labels") == labels + 2 + (unknown.status == 200) and page("wal_bytes") > log
    assert page("index_tombstones") == 4, "three replaced, one deleted"
    assert page("batch_tokens_sum") >= 1 and "new 0" not in page.text


def test_a_real_service_counts_its_versions(written):
    assert written.post({"labels": [{"id": "s", "text": "points"}]}, "/v1/labels").status == 200
    before = Page(written.probe("/metrics").body.decode())
    assert written.post({}, "/v1/snapshots").status == 200
    page = Page(written.probe("/metrics").body.decode())
    assert page("index_swap_total", result="ok") == 1 and page("index_swap_total") == 1
    (version,) = page.series("index_info")
    assert version["version"] == "v000002" and page("wal_bytes") < before("wal_bytes") and page("index_tombstones") == 0
    file = written.bundle / "v000001" / "embeddings.safetensors"
    file.chmod(0o644)
    file.write_bytes(b"x" + file.read_bytes()[1:])
    assert (
        written.post({}, "/v1/indexes/v000001/activate").status >= 400 and written.post({"queries": ["points"]}).status == 200
    )
    page = Page(written.probe("/metrics").body.decode())
    assert page("index_swap_total", result="refused") == 1 and page.series("index_info") == [version]


def test_series_are_few_whatever_is_asked(written):
    from dexml.bundle import Bundle

    known = Bundle.open(written.bundle).labels.ids[0]
    assert written.ask("GET", f"/v1/labels/{quote(known)}").status == 200
    before = Page(written.probe("/metrics").body.decode())
    for number in range(60):
        written.ask("GET", f"/nothing/{number}?q={number}-secret", headers={"X-Request-ID": f"id-{number}"})
        written.ask("GET", f"/v1/labels/unknown-{number}")
        written.ask(f"BREW{number}", f"/{number}")
    page = Page(written.probe("/metrics").body.decode())
    new = {tuple(s.items()) for s in page.series("http_requests_total")} - {
        tuple(s.items()) for s in before.series("http_requests_total")
    }
    assert len(new) <= 3 and len(page.samples) - len(before.samples) < 60
    assert page("http_requests_total", route="other", status="404", method="GET") == 60
    assert page("http_requests_total", route="other", method="other") >= 60
    assert page("http_requests_total", route="/v1/labels/<path:label_id>", status="404") == 60
    for text in (known, "secret", "unknown-", "nothing", "id-1", "BREW"):
        assert text not in page.text, text


def test_what_gunicorn_refuses_is_counted_too(written):
    with socket.create_connection(written.address, timeout=5) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nbad header\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")
    page = Page(written.probe("/metrics").body.decode())
    assert page("http_requests_total", route="other", method="other", status="400") >= 1
    assert page("rejected_total", reason="invalid") >= 1


def test_the_dashboard_asks_for_metrics_that_are_there(written):
    for reply in (
        written.post({"queries": ["points"]}),
        written.post({"labels": [{"id": "d", "text": "points"}]}, "/v1/labels"),
    ):
        assert reply.status == 200, reply.body
    page = Page(written.probe("/metrics").body.decode())
    served = {sample.name: set(sample.labels) for sample in page.samples}
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [item["query"]["query"] for item in board["templating"]["list"] if item["type"] == "query"]
    assert len(expressions) > 20
    named = {name for expression in expressions for name in re.findall(r"dexml_\w+", expression)}
    assert named - set(served) == {"dexml_gpu_memory_bytes"}, "a GPU is not everywhere"
    for expression in expressions:
        (name, *_) = re.findall(r"dexml_\w+", expression)
        asked = set(re.findall(r"by \(([\w, ]+)\)", expression)[0].split(", ")) if " by (" in expression else set()
        assert asked <= served.get(name, asked), expression
        assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places) and len({panel["id"] for panel in board["panels"]}) == len(places)
