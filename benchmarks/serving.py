"""A bundle to serve, a real process that serves it, and load on it from another: what the measurements of the service share."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("DEXML_CACHE") or Path.home() / ".cache" / "dexml") / "benchmarks"
SYLLABLES = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "s", "l")]


def words(count: int, seed: int) -> list[str]:
    """Return made-up words of two to four syllables."""
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(SYLLABLES, int(draw.integers(2, 5)))) for _ in range(count)]


def texts(count: int, seed: int, most: int = 8) -> list[str]:
    """Return texts of two to `most` made-up words, of which a few are frequent and most are rare, as in any language."""
    vocabulary, draw = np.array(words(30_000, 0)), np.random.default_rng(seed)
    lengths = draw.integers(2, most + 1, count)
    picked = np.minimum(draw.zipf(1.2, int(lengths.sum())) - 1, len(vocabulary) - 1)
    return [" ".join(vocabulary[part]) for part in np.split(picked, np.cumsum(lengths)[:-1])]


def made_bundle(labels: int, dimension: int, folder: Path | None = None) -> Path:
    """Return a bundle of made-up labels behind a bag encoder, as `dexml train` makes one on a CPU; made once, then kept.

    The tower's rows are random, not trained: that costs the same to serve.
    """
    bundle = (folder or CACHE) / f"bag_{labels}x{dimension}"
    if not (bundle / "CURRENT").is_file():
        from dexml.model import DualEncoder
        from dexml.types import LabelTable
        from training.imports import encode, import_bundle

        held = LabelTable(tuple(f"label {number}" for number in range(labels)), tuple(texts(labels, 1)))
        model = DualEncoder.make("bag", {}, "tokens", {"dimension": dimension, "start": "random"}, list(held.texts[:20_000]))
        rows = encode(model, held.texts, lambda done: None)
        bundle.parent.mkdir(parents=True, exist_ok=True)
        import_bundle(bundle, "bench-serve", model, held, rows, "exact", 0.05, {"labels": "made up"})
    return bundle


@dataclass
class Reply:
    """An answer of the service."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the body's JSON."""
        return json.loads(self.body)


class Process:
    """`dexml serve` as a process of its own."""

    def __init__(self, arguments: list[str], program: list[str] | None = None, **options: Any) -> None:
        command = [sys.executable, *(program or ["-m", "dexml", "serve"]), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment, **options)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+/", line)
        if found is None:
            raise SystemExit(f"the service did not start: {line!r}")
        self.url = found.group().rstrip("/")
        parts = urlsplit(self.url)
        self.host, self.port = parts.hostname or "", parts.port or 80

    @property
    def netloc(self) -> str:
        """Return what a Host header says."""
        return f"{self.host}:{self.port}"

    @property
    def workers(self) -> list[int]:
        """Return the process ids of gunicorn's workers."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(number) for number in path.read_text(encoding="utf-8").split()]

    def rss(self) -> int:
        """Return the bytes of memory that the worker holds itself; files that it maps are the page cache's."""
        return sum(_status(number, "RssAnon") for number in self.workers) * 1024

    def threads(self) -> int:
        """Return how many threads the worker has."""
        return sum(_status(number, "Threads") for number in self.workers)

    def files(self) -> int:
        """Return how many files and sockets the worker has open."""
        return sum(len(os.listdir(f"/proc/{number}/fd")) for number in self.workers)

    def ask(self, method: str, path: str, document: Any = None, timeout: float = 60) -> Reply:
        """Ask once, over a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            body = None if document is None else json.dumps(document)
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            reply = connection.getresponse()
            return Reply(reply.status, dict(reply.headers), reply.read())
        finally:
            connection.close()

    def end(self, timeout: float = 60) -> int:
        """Drain and end; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def _status(process: int, name: str) -> int:
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def metrics(port: int) -> dict[str, float]:
    """Return the metrics of an admin listener, by name and labels as they are written."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def free_port() -> int:
    """Return a port that nobody listens on, below those that the kernel deals to sockets that ask for any."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no port between 20,000 and 30,000 is free")


@contextmanager
def serving(arguments: list[str], **options: Any) -> Iterator[Process]:
    """Serve, and end it."""
    service = Process(arguments, **options)
    try:
        yield service
    finally:
        service.end()


class Loader:
    """`benchmarks/load.py` as a process of its own, started at once; `result()` waits for what came out."""

    def __init__(self, service: Process, *options: str, url: str | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "load.json"
        command = [
            sys.executable,
            str(ROOT / "benchmarks" / "load.py"),
            url or service.url,
            *options,
            "--json",
            str(self._path),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def result(self) -> dict[str, Any]:
        """Return the summary."""
        self._process.wait()
        with self._folder:
            found: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        return found


def load(service: Process, *options: str) -> dict[str, Any]:
    """Return what came of a load with these options of `benchmarks/load.py`."""
    return Loader(service, *options).result()
