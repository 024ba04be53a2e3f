"""Load a service over HTTP and say how it answered: so many clients, or so many requests a second, over kept connections.

usage: python benchmarks/load.py http://127.0.0.1:8080 --queries FILE --rate 100 --seconds 60      (open: all come when due)
       python benchmarks/load.py http://127.0.0.1:8080 --queries FILE --clients 32 --seconds 30    (closed: one each at a time)
       … --clients 1024 --rate 900      (closed, each client no sooner than its share of the rate)
       … --get /livez --rate 20         (a GET of a path)

FILE holds a query a line. An open loop's latencies run from the moment when a request was due, whether or not it could be sent
then, so that a service which stops for a second is charged for all that it kept waiting (coordinated omission). The client is
one process that writes ready-made bytes and reads as little as it can; what it costs is printed too.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
LOST = 0  # the "status" of what no answer came to


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: when it was due (s since the start), how long its answer took from there, status, Retry-After, number."""

    due: float
    seconds: float
    status: int
    retry_after: str
    number: int


Watch = Callable[[Sample, bytes], None]  # is given every answer's body


class Connection(asyncio.Protocol):
    """A kept HTTP/1.1 connection, one request at a time; it reads what a service of ours answers: Content-Length, no chunks."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[tuple[int, bytes, bytes]] | None = None
        self.read = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Finish the request once its whole answer is there."""
        self.read += data
        end = self.read.find(b"\r\n\r\n")
        if end < 0 or self.answer is None:
            return
        head = bytes(self.read[:end]).lower()
        length = int(header(head, b"content-length") or 0)
        if len(self.read) < end + 4 + length:
            return
        body = bytes(self.read[end + 4 : end + 4 + length])
        self.read.clear()
        answer, self.answer = self.answer, None
        if not answer.done():
            answer.set_result((int(head[9:12]), head, body))
        if b"\r\nconnection: close" in head:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell who waits."""
        self.transport = None
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionError("the connection ended before the answer"))

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Return status, head (in small letters) and body. Raises ConnectionError."""
        if self.transport is None or self.transport.is_closing():
            raise ConnectionError("not connected")
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.answer

    def close(self) -> None:
        """Close."""
        if self.transport is not None:
            self.transport.close()
            self.transport = None

    @property
    def is_open(self) -> bool:
        """Whether another request may be sent."""
        return self.transport is not None and not self.transport.is_closing()


def header(head: bytes, name: bytes) -> bytes:
    """Return a field of a head in small letters; empty where it is missing."""
    start = head.find(b"\r\n" + name + b":")
    if start < 0:
        return b""
    start += len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else len(head)].strip()


class Load:
    """Sends requests, over and over, and keeps a sample of each."""

    def __init__(
        self, host: str, port: int, requests: Sequence[bytes], patience_s: float = 35.0, watch: Watch | None = None
    ) -> None:
        self.address = (host, port)
        self.requests = requests
        self.samples: list[Sample] = []
        self.connections = 0  # opened so far
        self._order: Iterator[int] = itertools.count()
        self._patience_s = patience_s
        self._watch = watch
        self._free: list[Connection] = []
        self.began = 0.0

    async def closed(
        self, clients: int, seconds: float, rate: float | None = None, until: Callable[[], bool] = lambda: False
    ) -> None:
        """Have so many clients ask one request after the other; with a `rate`, all of them together no more than that.

        They end after so many seconds, or when `until` says so.
        """
        self.began = time.perf_counter()
        period = clients / rate if rate else 0.0

        async def one(number: int) -> None:
            due = self.began + period * number / clients
            while due < self.began + seconds and not until():
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                connection = await self._send(time.perf_counter(), self._take())
                if connection is not None:
                    self._free.append(connection)
                due = max(time.perf_counter(), due + period)

        await asyncio.gather(*(one(number) for number in range(clients)))
        self._close()

    async def open(self, rate: float, seconds: float, connections: int) -> None:
        """Send a request every 1/rate seconds, whatever becomes of those before, over at most so many connections."""
        self.began = time.perf_counter()
        room = asyncio.Semaphore(connections)

        async def one(due: float) -> None:
            async with room:
                connection = await self._send(due, self._take())
                if connection is not None:
                    self._free.append(connection)

        running: set[asyncio.Task[None]] = set()
        for number in range(int(rate * seconds)):
            due = self.began + number / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(one(due))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        self._close()

    def _take(self) -> Connection | None:
        while self._free:
            if (connection := self._free.pop()).is_open:
                return connection
        return None

    async def _send(self, due: float, connection: Connection | None) -> Connection | None:
        """Send the next request, due at that moment of the clock; return the connection if it may be used again."""
        number = next(self._order)
        status, head, body = LOST, b"", b""
        try:
            async with asyncio.timeout(self._patience_s):
                if connection is None and (connection := self._take()) is None:
                    loop = asyncio.get_running_loop()
                    _, connection = await loop.create_connection(Connection, *self.address)
                    self.connections += 1
                status, head, body = await connection.ask(self.requests[number % len(self.requests)])
        except (OSError, TimeoutError):
            if connection is not None:
                connection.close()
        seconds = time.perf_counter() - due
        sample = Sample(due - self.began, seconds, status, header(head, b"retry-after").decode("latin-1"), number)
        self.samples.append(sample)
        if self._watch is not None and status != LOST:
            self._watch(sample, body)
        return connection if connection is not None and connection.is_open else None

    def _close(self) -> None:
        for connection in self._free:
            connection.close()
        self._free.clear()


def searches(
    host: str, queries: Sequence[str], batches: Sequence[int] = (1,), fields: dict[str, Any] | None = None
) -> list[bytes]:
    """Return ready-made searches for `queries`, in batches of those sizes in turn."""
    made, turn, place = [], itertools.cycle(batches), 0
    while place < len(queries):
        size = next(turn)
        made.append(post(host, "/v1/search", {"queries": list(queries[place : place + size]), **(fields or {})}))
        place += size
    return made


def post(host: str, path: str, document: Any) -> bytes:
    """Return a POST of JSON as bytes."""
    body = json.dumps(document).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def get(host: str, path: str) -> bytes:
    """Return a GET as bytes."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def summary(samples: Sequence[Sample], warm_s: float = 0.0) -> dict[str, Any]:
    """Return what came out after the first `warm_s` seconds: by status, how many, how many a second, quantiles in ms."""
    counted = [sample for sample in samples if sample.due >= warm_s]
    if not counted:
        return {"requests": 0, "seconds": 0.0, "per_s": 0.0, "statuses": {}}
    # What was under way at the end is answered later, so the clock runs on to the last answer.
    seconds = max(sample.due + sample.seconds for sample in counted) - warm_s
    statuses: dict[str, Any] = {}
    for status, count in sorted(Counter(sample.status for sample in counted).items()):
        times = np.array([sample.seconds for sample in counted if sample.status == status])
        quantiles = {name: round(1000 * float(np.quantile(times, q)), 3) for name, q in QUANTILES.items()}
        statuses[str(status) if status else "no answer"] = {
            "requests": count,
            "per_s": round(count / seconds, 2),
            **quantiles,
        }
    waits = Counter(sample.retry_after for sample in counted if sample.status in (429, 503))
    return {
        "requests": len(counted),
        "seconds": round(seconds, 3),
        "per_s": round(len(counted) / seconds, 2),
        "statuses": statuses,
        "retry_after": dict(waits),
    }


def show(result: dict[str, Any], title: str) -> None:
    """Print a table of a summary."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in ("status", "requests", "per s", *(f"{name}, ms" for name in QUANTILES)):
        table.add_column(name, justify="right")
    for status, row in result["statuses"].items():
        table.add_row(status, f"{row['requests']:,}", f"{row['per_s']:,.1f}", *(f"{row[name]:,.2f}" for name in QUANTILES))
    console = Console()
    console.print(table)
    if result["retry_after"]:
        console.print("Retry-After: " + ", ".join(f"{value or 'none'} × {n}" for value, n in result["retry_after"].items()))
    if "client_us_per_request" in result:
        console.print(f"this client: {result['client_us_per_request']:.0f} µs of processor time a request")


def main() -> None:
    """Read the command line, load, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--queries", type=Path, help="a query a line")
    parser.add_argument("--get", help="a path to GET instead of searches")
    parser.add_argument("--rate", type=float, help="requests a second")
    parser.add_argument("--clients", type=int, help="clients of a closed loop")
    parser.add_argument("--connections", type=int, default=1024, help="at most, in an open loop")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--warm", type=float, default=0, help="seconds at the start that are not counted")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="queries a request, these sizes in turn")
    parser.add_argument("--fields", type=json.loads, default={}, help='further fields of a search, as {"top_k": 5}')
    parser.add_argument("--json", type=Path, help="write the summary here")
    parser.add_argument("--samples", type=Path, help="write every request here, one JSON list a line")
    given = parser.parse_args()
    parts = urlsplit(given.url)
    if (given.queries is None) == (given.get is None) or (given.rate is None and given.clients is None):
        parser.error("give one of --queries and --get, and --rate or --clients or both")
    if given.get:
        requests = [get(parts.netloc, given.get)]
    else:
        queries = [line for line in given.queries.read_text(encoding="utf-8").splitlines() if line.strip()]
        requests = searches(parts.netloc, queries, given.batch, given.fields)
    load = Load(parts.hostname or "127.0.0.1", parts.port or 80, requests)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a socket for each client
    before = time.process_time()
    if given.clients:
        asyncio.run(load.closed(given.clients, given.seconds, given.rate))
    else:
        asyncio.run(load.open(given.rate, given.seconds, given.connections))
    result = summary(load.samples, given.warm)
    result["client_us_per_request"] = round(1e6 * (time.process_time() - before) / max(1, len(load.samples)), 1)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if given.samples:
        lines = (json.dumps([s.due, s.seconds, s.status, s.retry_after, s.number]) for s in load.samples)
        given.samples.write_text("\n".join(lines) + "\n", encoding="utf-8")
    show(
        result,
        f"{given.url}: {f'{given.clients} clients' if given.clients else 'open loop'}"
        + (f", {given.rate:g} a second" if given.rate else ""),
    )
    sys.exit(0 if set(result["statuses"]) <= {"200"} else 1)


if __name__ == "__main__":
    main()
