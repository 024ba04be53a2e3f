"""Real server processes over real sockets, and applications in this process where a test must see inside."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Reply:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A process that serves, and the shortest way to ask it."""

    def __init__(self, arguments: list[str]):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
            start_new_session=True,  # so that a test can signal the whole group
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+/", line)
        assert found, f"no address in {line!r}: {self.process.stderr.read()}"
        self.line = line
        self.url = found.group()

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname, parts.port

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        answer = Reply(reply.status, reply.headers, reply.read())
        connection.close()
        return answer

    def post(self, body: Any, path: str = "/v1/search", **headers: str) -> Reply:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, raw, {"Content-Type": "application/json", **headers})

    def end(self, number: int = signal.SIGTERM, timeout: float = 15) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.stdout.close()
            self.process.stderr.close()
        return code


@contextmanager
def running(arguments: list[str]):
    server = Server(arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


@pytest.fixture(scope="session")
def stand_in() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dexml_stand_in", Path(__file__).with_name("stand_in.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def start():
    """Start a server process: `with start([...arguments of python...]) as server`."""
    return running


@pytest.fixture(scope="session")
def server():
    """The stand-in, served by the real process."""
    with running(["tests/serve/stand_in.py", "0"]) as server:
        yield server


@pytest.fixture(scope="session")
def real(tiny_bundle: Path):
    """A trained bundle, served by the console command."""
    with running(["-m", "dexml", "serve", str(tiny_bundle), "--port", "0"]) as server:
        yield server


@pytest.fixture
def make_app(stand_in: ModuleType):
    """An application in this process: `make_app(retriever or function, **settings)`; its thread ends with the test."""
    from serve import create_app
    from serve.settings import Settings

    apps = []

    def make(retriever: Any = None, **settings: Any):
        app = create_app(Settings(**settings), stand_in.StandIn() if retriever is None else retriever)
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.extensions["dexml"].worker.stop(timeout=10)
