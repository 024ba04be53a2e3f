"""Prometheus metrics of one application: what it counts as it works, and what is read off the worker when somebody asks.

Labels hold routes, codes and versions, never ids, paths or texts, so that their number is bounded. Whoever asks takes no lock
that the batches need: sizes are read as they stand.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from importlib import metadata

import torch
from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dexml import __version__
from dexml.device import faiss_wheel
from dexml.versions import DIGITS
from index.retriever import Found
from index.store import Written
from serve.errors import CODES
from serve.observer import Observer, Swap
from serve.tickets import Edit, Serving, Ticket
from serve.worker import Worker

PREFIX = "dexml"
PROBES = frozenset({"probes.livez", "probes.v2_live", "probes.readyz", "probes.health", "probes.v2_ready"})
OTHER = "other"  # the route of what is not ours, and the method of what is no method
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SHORT = (0.0001, 0.00025, 0.0005, *SECONDS)
POWERS = tuple(float(1 << power) for power in range(15))
REASONS = {"overloaded": "queue_full", "deadline_exceeded": "deadline", "draining": "draining", "not_ready": "not_ready"}


def reason_of(code: str) -> str | None:
    """Return why a request with this problem was rejected, or None where an answer of that kind is no rejection (a 404)."""
    status = CODES[code][0]
    if status in (401, 403):
        return "auth"
    return REASONS.get(code) or ("invalid" if status in (400, 408, 413, 414, 415, 421, 422, 431) else None)


class Metrics(Observer):
    """The registry of one application, with its counters and histograms."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("http_requests", "Answers by URL rule.", "route", "method", "status")
        self._duration = self._histogram("http_request_duration_seconds", "From the headers to the answer.", SECONDS, "route")
        self._rejected = self._counter("rejected", "Requests refused before they were answered.", "reason")
        self._stages = self._histogram("stage_duration_seconds", "Of a batch; serialize: of a request.", SHORT, "stage")
        self._wait = self._histogram("queue_wait_seconds", "From admission to the start of the batch.", SHORT)
        self._batch = self._histogram("batch_size", "Queries of a batch.", POWERS[:8])
        self._tokens = self._histogram("batch_tokens", "Tokens of a batch of texts.", POWERS)
        self._swaps = self._counter("index_swap", "Versions that took over, were not fit to, or could not be made.", "result")
        self._partial = self._counter("partial_responses", "Answers without the labels of a shard that was missing.")
        self._writes = self._counter("label_writes", "Labels written or not; result is ok or an error code.", "op", "result")
        self._load = Gauge("index_load_seconds", "Of the last load.", namespace=PREFIX, registry=self.registry)
        ProcessCollector(namespace=PREFIX, registry=self.registry)
        for reason in (*REASONS.values(), "auth", "invalid"):
            self._rejected.labels(reason)  # 0 from the start, so that the first one is a rise
        for result in ("ok", "refused", "failed"):
            self._swaps.labels(result)

    def watch(self, worker: Worker) -> None:
        """Read the gauges off `worker` from now on."""
        self.registry.register(_State(worker))

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics in the form that the Accept header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def answered(self, route: str, method: str, status: int, seconds: float | None = None) -> None:
        """Count an answer; `route` is a URL rule or `OTHER`."""
        self._requests.labels(route, method if method in METHODS else OTHER, str(status)).inc()
        if seconds is not None:
            self._duration.labels(route).observe(seconds)

    def rejected(self, code: str) -> None:
        """Count a problem, where it is a rejection."""
        if reason := reason_of(code):
            self._rejected.labels(reason).inc()

    def staged(self, stage: str, seconds: float) -> None:
        """Note how long a stage took: encode, retrieve, rescore or serialize."""
        self._stages.labels(stage).observe(seconds)

    def loaded(self, seconds: float) -> None:
        """Note that the model and the index were opened and warmed."""
        self._load.set(seconds)

    def batched(self, batch: Sequence[Ticket], found: Found, started: float) -> None:
        """Note that a batch was answered."""
        self._batch.observe(len(found.topk.ids))
        if found.tokens:
            self._tokens.observe(sum(found.tokens))
        for stage, seconds in found.seconds.items():
            self.staged(stage, seconds)
        self._partial.inc(len(batch) if found.missing else 0)
        for ticket in batch:
            self._wait.observe(started - ticket.submitted)

    def written(self, edit: Edit, written: Written | None, problem: str | None) -> None:
        """Count the labels of a write."""
        changed = written and written.changed
        upserted, deleted = (
            (changed.added + changed.replaced, changed.deleted) if changed else (len(edit.put), len(edit.deleted))
        )
        for op, count in (("upsert", upserted), ("delete", deleted)):
            if count:
                self._writes.labels(op, problem or "ok").inc(count)

    def swapped(self, result: Swap) -> None:
        """Count a version that serves from now on (ok), was not fit to (refused), or could not be made (failed)."""
        self._swaps.labels(result).inc()

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(name, words, labels, namespace=PREFIX, registry=self.registry)

    def _histogram(self, name: str, words: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, words, labels, namespace=PREFIX, registry=self.registry, buckets=buckets)


class _State(Collector):
    """What is so at the moment."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        wheel = faiss_wheel()
        self._build = {
            "version": __version__,
            "torch": torch.__version__,
            "faiss": f"{wheel} {metadata.version(wheel)}" if wheel else "",
            "cuda": torch.version.cuda or "",
        }

    def collect(self) -> Iterator[Metric]:
        worker = self._worker
        yield _info("build", "What runs.", self._build)
        yield _gauge("queue_depth", "Requests that wait for their batch.", worker.queued)
        yield _gauge("inflight_requests", "Requests queued or running.", worker.inflight)
        yield _gauge("worker_alive", "1 while the thread that owns the model lives.", worker.alive)
        yield _gauge("worker_silent_seconds", "For how long it has been at the same batch.", worker.silent_s)
        if (serving := worker.serving) is not None:
            yield from _of_index(serving)
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            yield _gpu_memory()


def _of_index(serving: Serving) -> Iterable[Metric]:
    store = serving.store
    live, manifest = store.live, store.bundle.manifest
    device = str(serving.info["index"].get("device", "cpu"))
    of_version = {"version": store.bundle.root.name, "sha256": manifest.sha256[:DIGITS], "device": device}
    yield _info("index", "What is served.", of_version)
    yield _gauge("index_labels", "Live labels.", len(live.labels))
    yield _gauge("index_tombstones", "Rows searched over and left out.", live.index.gone)
    yield _shards(live.index.up)
    yield _gauge("wal_bytes", "The log of writes since the version.", store.log_bytes)
    age = time.time() - datetime.fromisoformat(manifest.created).timestamp()
    yield _gauge("snapshot_age_seconds", "Since the version was made.", age)


def _shards(up: Sequence[int]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_shard_up", "Copies of a shard of the labels that answer.", labels=["shard"])
    for shard, copies in enumerate(up):
        family.add_metric([str(shard)], copies)
    return family


def _gpu_memory() -> Metric:
    free, total = torch.cuda.mem_get_info()
    family = GaugeMetricFamily(
        f"{PREFIX}_gpu_memory_bytes", "Torch's tensors and pool; used: by all processes.", labels=["kind"]
    )
    sizes = {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved(), "used": total - free}
    for kind, size in {**sizes, "total": total}.items():
        family.add_metric([kind], size)
    return family


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", words, value)


def _info(name: str, words: str, value: dict[str, str]) -> Metric:
    return InfoMetricFamily(f"{PREFIX}_{name}", words, value)


def install(app: Flask, metrics: Metrics) -> None:
    """Count every answer of `app`; to be installed so that it sees the answer last."""

    def finish(response: Response) -> Response:
        route = OTHER if request.url_rule is None else request.url_rule.rule
        metrics.answered(route, request.method, response.status_code, time.monotonic() - g.received)
        if "problem" in g and request.endpoint not in PROBES:
            metrics.rejected(g.problem)
        return response

    app.after_request(finish)
