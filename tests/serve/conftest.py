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
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

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
    """A process that serves, and the shortest way to ask it. Several start and end side by side: waiting comes later."""

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
        self.told = False

    @cached_property
    def line(self) -> str:
        return self.process.stdout.readline()

    @cached_property
    def url(self) -> str:
        found = re.search(r"http://\S+/", self.line)
        assert found, f"no address in {self.line!r}: {self.process.stderr.read()}"
        return found.group()

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname, parts.port

    @property
    def admin(self) -> tuple[str, int]:
        """Where its admin listener is, for a server that has one."""
        parts = urlsplit(re.findall(r"http://\S+/", self.line)[1])
        return parts.hostname, parts.port

    def probe(self, path: str, method: str = "GET", **headers: str) -> Reply:
        """Ask the admin listener."""
        return self.ask(method, path, headers=headers, address=self.admin)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        address: tuple[str, int] | None = None,
    ) -> Reply:
        connection = http.client.HTTPConnection(*(address or self.address), timeout=20)
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        answer = Reply(reply.status, reply.headers, reply.read())
        connection.close()
        return answer

    def post(self, body: Any, path: str = "/v1/search", **headers: str) -> Reply:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, raw, {"Content-Type": "application/json", **headers})

    def end(self, number: int = signal.SIGTERM, timeout: float = 15) -> int:
        """Send the signal, unless the process has ended or is about to, and return the exit code."""
        self.tell(number)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.stdout.close()
            self.process.stderr.close()
        return code

    def tell(self, number: int = signal.SIGTERM) -> None:
        """Send the signal once: a second one would be less gentle."""
        if not self.told and self.process.poll() is None:
            self.process.send_signal(number)
        self.told = True


@contextmanager
def running(*programs: list[str]):
    """Start a server for each list of Python's arguments, side by side, and end them so."""
    servers = [Server(arguments) for arguments in programs]
    try:
        yield servers
    finally:
        for server in servers:
            server.tell()
        for server in servers:
            server.end()


@pytest.fixture(scope="session")
def running_servers():
    """`running`, for tests that start servers of their own."""
    return running


@pytest.fixture(scope="session")
def stand_in() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dexml_stand_in", Path(__file__).with_name("stand_in.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STAND_IN = ["tests/serve/stand_in.py", "0"]


@pytest.fixture(scope="module")
def to_drain():
    """Two stand-ins of a test's own each, to be ended."""
    with running(STAND_IN, STAND_IN) as servers:
        yield iter(servers)


@pytest.fixture(scope="session")
def both(tiny_bundle: Path):
    command = ["-m", "dexml", "serve", str(tiny_bundle), "--port", "0", "--admin-port", "0", "--allow-host", "Search.example"]
    with running(STAND_IN, command) as servers:
        yield servers


@pytest.fixture(scope="session")
def server(both: list[Server]) -> Server:
    """The stand-in, served by the real process."""
    return both[0]


@pytest.fixture(scope="session")
def real(both: list[Server]) -> Server:
    """A trained bundle, served by the console command."""
    return both[1]


WIDE = """
name = "wide"
out = "{out}"
[data]
path = "{data}"
[tower]
dimension = 32
start = "random"
[training]
epochs = 4
[validation]
fraction = 0
[index]
name = "faiss"
factory = "IVF8,SQ4"
nprobe = 3
device = "cpu"
"""


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a data set of 400 labels and a bundle with an index that sees only a part of them, and that coarsely."""
    from data.jsonl import JsonLines
    from dexml.__main__ import command
    from dexml.types import LabelTable, Positives, Split

    root = tmp_path_factory.mktemp("wide")
    pairs = [(f"colour{i}", f"thing{j}") for i in range(20) for j in range(20)]
    labels = LabelTable(tuple(f"{a}/{b}" for a, b in pairs), tuple(f"a {a} {b}" for a, b in pairs))

    def split(*templates: str) -> Split:
        texts = tuple(template.format(a, b) for template in templates for a, b in pairs)
        return Split(texts, Positives.from_rows([[row % 400] for row in range(len(texts))], 400))

    splits = {"train": split("show me {} {}", "{} of {}", "any {1} in {0}"), "test": split("find a {1} that is {0}")}
    JsonLines.write(root / "data", labels, splits)
    (root / "wide.toml").write_text(WIDE.format(out=root / "run", data=root / "data"), encoding="utf-8")
    done = CliRunner().invoke(command, ["train", str(root / "wide.toml")], prog_name="dexml")
    assert done.exit_code == 0, done.output
    return root / "data", root / "run" / "bundle"


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
