"""The owner of the model dies or hangs: who waits is told, probes say so, and a process of its own starts anew (R26)."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

LIMIT_S = 5.0  # until /livez says 503


def search(app, text: str, **fields):
    return app.test_client().post("/v1/search", json={"queries": [text], **fields})


def loaded(make_app, *retriever, **settings):
    app = make_app(*retriever, **settings)
    assert app.extensions["dexml"].worker.wait_until_loaded(10)
    return app


def until(condition, seconds: float) -> float:
    """Wait until `condition()` and return how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "too late"
        time.sleep(0.02)
    return time.monotonic() - start


def alive(app) -> bool:
    return app.test_client().get("/livez").status_code == 200


def test_when_the_thread_dies_everybody_is_told_at_once(make_app):
    app = loaded(make_app)
    start = time.monotonic()
    with ThreadPoolExecutor(5) as pool:
        blocker = pool.submit(search, app, "slow 300")
        time.sleep(0.1)
        fatal = pool.submit(search, app, "fatal", timeout_ms=20_000)
        time.sleep(0.05)
        behind = [pool.submit(search, app, "sort", top_k=2, timeout_ms=20_000) for _ in range(3)]
        replies = [future.result() for future in (fatal, *behind)]
        assert blocker.result().status_code == 200
    assert time.monotonic() - start < LIMIT_S, "not at their deadlines"
    assert [reply.status_code for reply in replies] == [500, 503, 503, 503]
    assert replies[1].headers["Retry-After"] and "Traceback" not in replies[0].text
    assert not alive(app) and app.test_client().get("/readyz").status_code == 503
    late = search(app, "sort")
    assert late.status_code == 503 and late.json["error"]["code"] == "not_ready"
    worker = app.extensions["dexml"].worker
    assert worker.inflight == worker.queued == 0


def test_a_search_that_raises_ends_nothing(make_app):
    app = loaded(make_app, watchdog_s=0.5)
    assert [search(app, text).status_code for text in ("broken", "sort")] == [500, 200]
    assert alive(app)


def test_a_thread_that_hangs_is_given_up(make_app, stand_in):
    gate = threading.Event()

    class Stuck(stand_in.StandIn):
        def search(self, texts, k, **more):
            if texts[0] == "stuck":
                gate.wait(30)
            return super().search(texts, k, **more)

    app = loaded(make_app, Stuck(), watchdog_s=1)
    start = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        short = pool.submit(search, app, "stuck", timeout_ms=300)
        time.sleep(0.1)
        long = pool.submit(search, app, "sort", timeout_ms=20_000)
        assert short.result().status_code == 504 and time.monotonic() - start < 0.9
        assert alive(app), "it may yet end"
        until(lambda: not alive(app), LIMIT_S)
        assert long.result().status_code == 503 and time.monotonic() - start < LIMIT_S
        assert search(app, "sort").status_code == 503
    gate.set()  # that it comes back in the end changes nothing
    worker = app.extensions["dexml"].worker
    until(lambda: not worker._thread.is_alive(), 5)
    assert not alive(app) and worker.inflight == 0


def test_long_work_that_is_no_batch_does_not_trip_it(make_app, stand_in):
    """Loading takes longer than the watchdog's patience, then a pause without requests, then many short batches in a row."""
    app = make_app(lambda: stand_in.StandIn(load_s=1.2), watchdog_s=0.4, max_inflight=64)
    worker = app.extensions["dexml"].worker
    while worker.serving is None:
        assert alive(app)
        time.sleep(0.05)
    assert search(app, "sort").status_code == 200
    time.sleep(0.8)
    assert alive(app), "a thread with nothing to do is not stuck"
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda number: search(app, "slow 100", top_k=1 + number), range(9)))
    assert {reply.status_code for reply in replies} == {200} and alive(app), "nor is one that has a lot to do"


def test_it_is_called_once_when_a_fault_is_found(stand_in):
    from serve import create_app
    from serve.settings import Settings

    calls = []
    app = create_app(Settings(watchdog_s=0.2), stand_in.StandIn(), lambda: calls.append(alive(app)))
    assert app.extensions["dexml"].worker.wait_until_loaded(10) and alive(app)
    search(app, "fatal")
    until(lambda: calls, LIMIT_S)
    time.sleep(0.5)
    assert calls == [False], "it says so before whoever restarts it learns of it"


@pytest.fixture(scope="module")
def both(running_servers):
    program = ["tests/serve/stand_in.py", "0", "64", "1", "admin_port=0", "watchdog_s=1"]
    with running_servers(program, program) as servers:
        yield servers


@pytest.mark.parametrize("fault", ["fatal", "hang"])
def test_a_process_starts_anew(both, fault: str):
    """R26, with real processes: 503 at both listeners within 5 s, and served again within the load (1 s) and 5 s more."""
    server = both[fault == "hang"]
    assert server.post({"queries": ["sort"]}).status == 200
    start = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        query = "fatal" if fault == "fatal" else "slow 600000"
        hit = pool.submit(server.post, {"queries": [query], "timeout_ms": 700})
        time.sleep(0.2)
        dead = until(lambda: server.probe("/livez").status == 503, LIMIT_S)
        assert server.ask("GET", "/livez").status == 503 and server.post({"queries": ["sort"]}).status == 503
        assert hit.result().status == (500 if fault == "fatal" else 504)
        assert dead < LIMIT_S and server.process.poll() is None

    def served() -> bool:
        try:
            return server.probe("/readyz").status == 200 and server.post({"queries": ["sort"]}).status == 200
        except OSError:
            return False

    until(served, 1 + LIMIT_S + 3)  # the interpreter's own start counts as load too
    print(f"{fault}: 503 after {dead + 0.2:.2f} s, served again after {time.monotonic() - start:.2f} s")
    assert "10 labels" in server.process.stdout.readline(), "the new process says so"
    assert server.end() == 0
