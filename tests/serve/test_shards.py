"""A service whose labels are on a Ray cluster of several nodes, under load: nodes lost, processes stopped, versions refused.

Every answer that is a 200 is compared with that of one process for the version which it names.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dexml.label_log import Change
from index.retriever import Retriever
from index.store import Store
from serve.errors import Problem

if importlib.util.find_spec("ray") is None:
    pytest.skip("the extra `ray` is not installed", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

TEXTS = ("sorting of arrays", "a matrix in pieces", "points into groups", "random numbers and lines", "join strings")
DEADLINE_MS = 1500
SETTLED_S = 90.0  # for a copy to be back, on a machine that does much else


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head, and two nodes that may be lost; it asks for a token, as one that others reach must."""
    before = dict(os.environ)
    os.environ.update(  # Ray reads them when it is imported
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4, RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0"
    )
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=node())
    for _ in range(2):
        made.add_node(**node())
    yield made
    ray.shutdown()
    made.shutdown()
    os.environ.clear()
    os.environ.update(before)


def node() -> dict[str, Any]:
    return {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False}


@dataclass
class Service:
    """An application over shards, and what one process answers for each version."""

    app: Any
    bundle: Path
    truths: dict[str, list[list[tuple[str, float]]]] = field(default_factory=dict)

    @property
    def engine(self) -> Any:
        return self.app.extensions["dexml"].worker.serving.store.live.index._engine

    def learn(self, version: str) -> None:
        """Have one process answer for the labels as they are on disk, under the name of a version."""
        with Retriever.open(self.bundle).store as store:
            found = Retriever(store).search(TEXTS, 3)
            assert found.version == version
            rows = zip(found.topk.ids.tolist(), found.topk.scores.tolist(), strict=True)
            self.truths[version] = [[(found.labels.ids[n], s) for n, s in zip(*row, strict=True)] for row in rows]

    def post(self, path: str = "/v1/search", **body: Any) -> Any:
        return self.app.test_client().post(path, json=body)

    def search(self, **body: Any) -> Any:
        return self.post(**{"queries": list(TEXTS), "top_k": 3, "timeout_ms": DEADLINE_MS, **body})

    def check(self, document: dict[str, Any]) -> None:
        """Compare an answer, whole, with the truth of the version that it names."""
        truth = self.truths[document["index_version"]]
        assert not document["partial"]
        for result, expected in zip(document["results"], truth, strict=True):
            assert [label["id"] for label in result["labels"]] == [name for name, _ in expected]
            assert [label["score"] for label in result["labels"]] == pytest.approx([score for _, score in expected], abs=1e-6)

    def wait_until(self, true: Callable[[], bool], what: str) -> float:
        started = time.monotonic()
        while not true():
            assert time.monotonic() - started < SETTLED_S, what
            time.sleep(0.1)
        return time.monotonic() - started

    def pid(self, shard: int, copy: int) -> int:
        return self.engine._ray.get(self.engine._copies[shard][copy].actor.where.remote())[1]

    @contextmanager
    def under_load(self) -> Iterator[Counter[int]]:
        """Search without pause from two threads; statuses are counted, and every 200 is checked."""
        seen: Counter[int] = Counter()
        slow: list[float] = []
        faults: list[BaseException] = []
        ended = threading.Event()

        def run() -> None:
            while not ended.is_set():
                started = time.monotonic()
                reply = self.search()
                slow.append(time.monotonic() - started)
                seen[reply.status_code] += 1
                try:
                    if reply.status_code == 200:
                        self.check(reply.json)
                except BaseException as error:
                    faults.append(error)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert not faults, faults[0]
        assert max(slow) < DEADLINE_MS / 1000 + 1.0, "nobody waits past the deadline"


@contextmanager
def served(cluster: Any, bundle: Path, **settings: Any) -> Iterator[Service]:
    from serve import create_app
    from serve.settings import Settings

    app = create_app(Settings(bundle=bundle, engine="ray", ray_address=cluster.address, **settings))
    worker = app.extensions["dexml"].worker
    assert worker.wait_until_loaded(240) and worker.failure is None, worker.failure
    service = Service(app, bundle)
    try:
        service.learn("v000001")
        yield service
    finally:
        service.engine.close()
        worker.stop(timeout=10)


@pytest.fixture(scope="module")
def doubled(cluster, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("doubled") / "bundle"))
    with served(cluster, bundle, shards=2, replicas=2, writable=True) as service:
        yield service


def test_two_copies_stand_on_two_nodes_and_answer_as_one_process(doubled: Service):
    for copies in doubled.engine._copies:
        assert len({copy.node for copy in copies}) == 2
    with Retriever.open(doubled.bundle).store as store:
        for normalize in ("topk", "all"):
            document = doubled.search(normalize=normalize).json
            doubled.check(document)
            assert document["shards"] == {"total": 2, "ok": 2, "failed": 0}
            found = Retriever(store).search(TEXTS, 3, normalize=normalize)
            for result, log_z in zip(document["results"], found.topk.log_z.tolist(), strict=True):
                assert result["normalizer"]["log_z"] == pytest.approx(log_z, abs=1e-5)
    about = doubled.app.test_client().get("/v1/info").json["bundle"]["index"]
    assert about["labels"] == [5, 5] and about["replicas"] == 2 and about["up"] == [2, 2]
    assert 'dexml_shard_up{shard="1"} 2.0' in doubled.app.test_client().get("/metrics").text


def test_a_stopped_copy_delays_nobody(doubled: Service):
    pid = doubled.pid(0, 0)
    os.kill(pid, signal.SIGSTOP)
    try:
        with doubled.under_load() as seen:
            time.sleep(2)
        assert set(seen) == {200} and doubled.engine.up == (1, 2)
    finally:
        os.kill(pid, signal.SIGCONT)
    doubled.wait_until(lambda: doubled.search().status_code == 200 and doubled.engine.up == (2, 2), "the copy came to")


def test_labels_come_and_go_and_a_version_rolls_under_load(doubled: Service):
    written = doubled.post("/v1/labels", labels=[{"id": "new", "text": TEXTS[0]}])
    assert written.json["index_version"] == "v000001+1" and written.json["durable"]
    assert doubled.app.test_client().delete("/v1/labels/svd").json["index_version"] == "v000001+2"
    doubled.learn("v000001+2")
    document = doubled.search().json
    assert document["index_version"] == "v000001+2" and document["results"][0]["labels"][0]["id"] == "new"
    doubled.check(document)
    doubled.truths["v000002"] = doubled.truths["v000001+2"]  # the same labels, compacted
    with doubled.under_load() as seen:
        assert doubled.post("/v1/snapshots").json["index_version"] == "v000002"
        time.sleep(0.3)
    assert set(seen) == {200}
    doubled.check(doubled.search().json)


def test_a_copy_that_missed_changes_gets_them_before_it_answers(doubled: Service):
    """A copy that comes back has its part as published: what was written since is sent when it is first asked."""
    lost = doubled.engine._copies[1][0]
    os.kill(doubled.pid(1, 0), signal.SIGKILL)
    doubled.wait_until(lambda: lost.actor is None, "its end was noticed")
    version = doubled.post("/v1/labels", labels=[{"id": "newer", "text": TEXTS[1]}]).json["index_version"]
    doubled.learn(version)
    doubled.wait_until(lambda: doubled.engine.up == (2, 2), "it came back")
    for _ in range(6):  # both copies in turn
        document = doubled.search().json
        assert document["index_version"] == version
        doubled.check(document)


def test_a_lost_node_costs_no_answer_where_each_shard_has_two_copies(doubled: Service, cluster):
    gone = cluster.worker_nodes.copy().pop()
    with doubled.under_load() as seen:
        time.sleep(1)
        cluster.remove_node(gone, allow_graceful=False)
        time.sleep(3)
    assert seen[200] >= 0.999 * seen.total(), seen
    doubled.wait_until(lambda: doubled.engine.up == (2, 2), "the copies are elsewhere")
    doubled.check(doubled.search().json)


@pytest.fixture(scope="module")
def single(doubled, cluster, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Three shards without a second copy, on three nodes again; after the tests of the other service."""
    doubled.engine.close()
    cluster.add_node(**node())
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("single") / "bundle"))
    with served(cluster, bundle, shards=3) as service:
        yield service


def test_a_stopped_shard_is_504_then_503_at_once_or_left_out(single: Service):
    pid = single.pid(1, 0)
    os.kill(pid, signal.SIGSTOP)
    try:
        late = single.search(timeout_ms=700)
        assert (late.status_code, late.json["error"]["code"]) == (504, "deadline_exceeded")
        single.wait_until(lambda: single.engine.up == (1, 0, 1), "it counts as hanging")
        started = time.monotonic()
        missing = single.search()
        assert time.monotonic() - started < 0.5, "nobody waits for it again"
        assert (missing.status_code, missing.json["error"]["code"]) == (503, "shard_unavailable")
        assert missing.headers["Retry-After"] == "1"
        assert single.app.test_client().get("/readyz").status_code == 503
        part = single.search(allow_partial=True, normalize="all")
        assert part.status_code == 200 and part.json["partial"]
        assert part.json["shards"] == {"total": 3, "ok": 2, "failed": 1}
        stored = [label["id"] for label in single.app.test_client().get("/v1/labels").json["labels"]]
        for result in part.json["results"]:
            assert not result["exact"] and result["normalizer"] == {"kind": "all", "log_z": None, "labels": None}
            assert all(label["probability"] is None for label in result["labels"])
            assert not {label["id"] for label in result["labels"]} & set(stored[3:6])
        among = single.search(allow_partial=True).json["results"][0]
        assert among["normalizer"]["labels"] == 7 and among["labels"][0]["probability"] > 0
    finally:
        os.kill(pid, signal.SIGCONT)
    single.wait_until(lambda: single.search().status_code == 200, "it came to")
    single.check(single.search().json)


def test_a_version_that_one_shard_refuses_is_not_served(single: Service, tmp_path: Path):
    with Store.open(single.bundle, writable=True) as other:  # another process's writes, which this service only reads
        row = other.version.model.embed_labels([TEXTS[2]]).numpy()[0]
        other.write([Change("fft"), Change("new", TEXTS[2], row)])
        assert other.compact() == "v000002"
    single.learn("v000002")
    from dexml.bundle import Bundle
    from index.shards import parts

    version = Bundle.open(single.bundle)
    folder = parts.spread(version, version.manifest.index, parts.cuts(len(version.labels), 3))[1]
    rows = folder / parts.ROWS
    rows.chmod(0o644)
    content = bytearray(rows.read_bytes())
    content[-1] ^= 64
    rows.write_bytes(content)
    worker = single.app.extensions["dexml"].worker
    store = worker.serving.store

    def activate() -> str:
        return worker.upkeep.change(store, lambda: store.activate("v000002"))  # as an administrator's request does

    with single.under_load() as seen:
        with pytest.raises(Problem) as refused:
            activate()
        time.sleep(0.2)
    assert (refused.value.status, refused.value.code) == (409, "version_unusable")
    assert "shard 1 of 3" in refused.value.detail and str(single.bundle) not in refused.value.detail
    assert set(seen) == {200} and single.search().json["index_version"] == "v000001"
    shutil.rmtree(folder)
    with single.under_load() as seen:
        assert activate() == "v000002"
        time.sleep(0.2)
    assert set(seen) == {200}
    assert single.search().json["index_version"] == "v000002"


def test_a_lost_node_is_503_until_its_shard_is_elsewhere(single: Service, cluster):
    places = [copies[0].node for copies in single.engine._copies]
    gone = next(node for node in cluster.worker_nodes if node.node_id in places)
    with single.under_load() as seen:
        time.sleep(0.5)
        cluster.remove_node(gone, allow_graceful=False)
        single.wait_until(lambda: seen[503] > 0, "it is missed")
        took = single.wait_until(lambda: single.engine.up == (1, 1, 1), "it is elsewhere")
        time.sleep(0.3)
    assert set(seen) <= {200, 503, 504} and seen[200] > 0
    single.check(single.search().json)
    assert took < 60
