"""One request at a time has Python; those that wait for something else step aside, and probes never wait."""

from __future__ import annotations

import threading
import time

import pytest

from serve.turns import RECEIVED, InTurn, Turns, aside


class Watched:
    """A WSGI application that notes how many are in it at once, and waits for its gate as its path says."""

    def __init__(self):
        self.gate = threading.Event()
        self.inside = self.most = 0
        self.received: list[float] = []

    def __call__(self, environ, start_response):
        self.received.append(environ[RECEIVED])
        self.inside += 1
        self.most = max(self.most, self.inside)
        if environ["PATH_INFO"] == "/aside":
            self.inside -= 1
            with aside():
                self.gate.wait(10)
            self.inside += 1
        elif environ["PATH_INFO"] == "/long":
            self.gate.wait(10)
        else:
            time.sleep(0.01)
        self.inside -= 1
        if environ["PATH_INFO"] == "/broken":
            raise RuntimeError("broken")
        return [b"done"]


@pytest.fixture
def watched():
    return Watched()


def ask(app, path: str) -> threading.Thread:
    thread = threading.Thread(target=app, args=({"PATH_INFO": path}, None))
    thread.start()
    return thread


def until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_one_at_a_time(watched):
    turns = Turns()
    threads = [ask(InTurn(watched, turns), "/") for _ in range(20)]
    for thread in threads:
        thread.join()
    assert watched.most == 1 and turns.wanted == 0 and len(watched.received) == 20


def test_the_clock_starts_before_the_turn(watched):
    app = InTurn(watched, Turns())
    first = ask(app, "/long")
    until(lambda: watched.inside == 1)
    asked = time.monotonic()
    second = ask(app, "/")
    time.sleep(0.1)
    assert watched.inside == 1
    watched.gate.set()
    for thread in (first, second):
        thread.join()
    assert watched.received[1] - asked < 0.1


def test_who_waits_lets_others_in_and_has_the_turn_again_afterwards(watched):
    turns = Turns()
    app = InTurn(watched, turns)
    waiting = [ask(app, "/aside") for _ in range(5)]
    until(lambda: len(watched.received) == 5 and turns.wanted == 0)
    assert app({"PATH_INFO": "/"}, None) == [b"done"]
    watched.gate.set()
    for thread in waiting:
        thread.join()
    assert watched.most == 1 and turns.wanted == 0


def test_a_probe_does_not_wait(watched):
    app = InTurn(watched, Turns())
    long = ask(app, "/long")
    until(lambda: watched.inside == 1)
    assert app({"PATH_INFO": "/livez"}, None) == [b"done"]
    watched.gate.set()
    long.join()


def test_an_error_gives_the_turn_back(watched):
    turns = Turns()
    app = InTurn(watched, turns)
    with pytest.raises(RuntimeError):
        app({"PATH_INFO": "/broken"}, None)
    assert turns.wanted == 0 and app({"PATH_INFO": "/"}, None) == [b"done"]


def test_without_a_turn_stepping_aside_is_nothing():
    with aside():
        pass


def test_requests_that_have_a_thread_count_before_they_are_queued(make_app):
    from serve.worker import SPARE

    worker = make_app(max_inflight=4).extensions["dexml"].worker
    assert worker.wait_until_loaded(10)
    assert worker.overload() is None and worker.overload(4 + SPARE - 1) is None
    problem = worker.overload(4 + SPARE)
    assert problem is not None and problem.code == "overloaded" and int(problem.headers["Retry-After"]) >= 1
