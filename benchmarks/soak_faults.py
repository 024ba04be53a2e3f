"""Deadlines, clients that leave, and signals under load: rows R4, R5 and R6 of `soak_serve.py`."""

from __future__ import annotations

import asyncio
import http.client
import signal
import socket
import struct
import threading
import time
from collections import Counter
from typing import Any

from load import Load, Sample, post, searches
from serving import Process, Reply, free_port, metrics

STAND_IN = ["tests/serve/stand_in.py"]
Row = dict[str, Any]


def row(name: str, what: str, passed: bool, **figures: Any) -> Row:
    """Return a row of the table."""
    return {"row": name, "what": what, "passed": passed, "figures": figures}


def stand_in(max_inflight: int, admin: int, **settings: int) -> Process:
    """Return the tests' stand-in of a model, which is slow on command, behind the real server process."""
    more = [f"{name}={value}" for name, value in settings.items()]
    return Process(["0", str(max_inflight), f"admin_port={admin}", *more], program=STAND_IN)


def deadline(quick: bool) -> Row:
    """R4: 50 ms of patience beside a batch of 500 ms: 504 in time, and the search is never made."""
    service = stand_in(64, admin := free_port())
    try:
        turns, took, statuses = 2 if quick else 20, [], Counter[int]()
        searched = metrics(admin)["dexml_batch_size_count"]
        for _ in range(turns):
            slow = threading.Thread(target=service.ask, args=("POST", "/v1/search", {"queries": ["slow 500"]}))
            slow.start()
            time.sleep(0.1)
            start = time.perf_counter()
            reply = service.ask("POST", "/v1/search", {"queries": ["sort"], "timeout_ms": 50})
            took.append(1000 * (time.perf_counter() - start))
            statuses[reply.status] += 1
            slow.join()
        page = metrics(admin)
        searches_made = int(page["dexml_batch_size_count"] - searched)
        dropped = int(page['dexml_rejected_total{reason="deadline"}'])
    finally:
        service.end()
    limit_ms = 350 if quick else 100  # beside other work, as in a test: in any case long before the batch's end
    passed = set(statuses) == {504} and max(took) <= limit_ms and searches_made == turns and dropped == turns
    figures = {"answers": dict(statuses), "slowest_ms": round(max(took), 1), "searched": searches_made, "dropped": dropped}
    return row("R4", "a deadline of 50 ms beside a batch of 500 ms", passed, turns=turns, **figures)


def leavers(quick: bool) -> Row:
    """R5: half of many clients leave while they are queued: the others are answered, and no place stays taken."""
    clients = 100 if quick else 1000
    service = stand_in(clients + 100, admin := free_port(), deadline_ms=20_000)
    try:
        texts = ["slow 300", *(f"sort {number}" for number in range(1, clients))]
        requests = [post(service.netloc, "/v1/search", {"queries": [text]}) for text in texts]
        sockets = [socket.create_connection((service.host, service.port), timeout=30) for _ in range(clients)]
        for one, request in zip(sockets, requests, strict=True):
            one.sendall(request)
        until = time.monotonic() + 10
        while metrics(admin)["dexml_inflight_requests"] < clients / 4 and time.monotonic() < until:
            time.sleep(0.01)
        queued = int(metrics(admin)["dexml_inflight_requests"])
        for one in sockets[1::2]:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, as of one who has gone
            one.close()
        answered = Counter(one.recv(65536)[9:12].decode() for one in sockets[::2])
        start = time.monotonic()
        while metrics(admin)["dexml_inflight_requests"] and time.monotonic() < start + 10:
            time.sleep(0.01)
        left = time.monotonic() - start
        for one in sockets[::2]:
            one.close()
        after = service.ask("POST", "/v1/search", {"queries": ["sort"]}).status
    finally:
        service.end()
    passed = dict(answered) == {"200": clients // 2} and left <= 2 and after == 200
    figures = {"queued": queued, "answered": dict(answered), "empty_after_s": round(left, 2)}
    return row("R5", f"{clients // 2} of {clients} clients leave while queued", passed, **figures)


def signals(quick: bool) -> Row:
    """R6: SIGTERM under load: all that was accepted is answered 200; then a second SIGTERM during a drain ends it."""
    service = stand_in(256, admin := free_port())
    load = Load(service.host, service.port, searches(service.netloc, ["slow 20 x", "sort y", "mean z"]), patience_s=20)
    told: dict[str, float] = {}

    def tell() -> None:
        time.sleep(1 if quick else 5)
        told["at"] = time.perf_counter()
        service.process.send_signal(signal.SIGTERM)
        while time.perf_counter() < told["at"] + 5:
            try:
                if _probe(admin).status == 503:
                    break
            except OSError:
                break
            time.sleep(0.005)
        told["unready_ms"] = 1000 * (time.perf_counter() - told["at"])

    telling = threading.Thread(target=tell)
    telling.start()
    asyncio.run(load.closed(64, 1.5 if quick else 6))
    telling.join()
    code = service.process.wait(60)  # not told a second time, which would end it at once
    service.end()
    # A kept connection may be closed just as its client asks again: only what was under way for sure counts as accepted.
    accepted = [sample for sample in load.samples if load.began + sample.due <= told["at"] - 0.05]
    lost = [sample for sample in accepted if sample.status != 200]
    later = Counter(_name(sample) for sample in load.samples if sample not in set(accepted))
    second = _second_term()
    passed = not lost and code == 0 and told["unready_ms"] <= 200 and second <= 1 and set(later) <= {"200", "503", "refused"}
    figures = {"accepted": len(accepted), "not_200": len(lost), "later": dict(later), "exit": code}
    figures |= {"unready_ms": round(told["unready_ms"], 1), "second_term_s": round(second, 2)}
    return row("R6", "SIGTERM under load of 64 clients, and twice", passed, **figures)


def _second_term() -> float:
    """Return how many seconds a service with 10 s of work before it lives on after a second SIGTERM."""
    service = stand_in(8, free_port())

    def ask() -> None:
        try:
            service.ask("POST", "/v1/search", {"queries": ["slow 10000"], "timeout_ms": 20_000})
        except (OSError, ValueError):
            return  # it is to be cut off

    threading.Thread(target=ask, daemon=True).start()
    time.sleep(0.5)
    service.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    start = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    service.process.wait(60)
    service.end()
    return time.monotonic() - start


def _probe(admin: int) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=1)
    try:
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        return Reply(reply.status, dict(reply.headers), reply.read())
    finally:
        connection.close()


def _name(sample: Sample) -> str:
    return str(sample.status) if sample.status else "refused"


__all__ = ["deadline", "leavers", "row", "signals", "stand_in"]
