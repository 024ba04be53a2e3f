"""Stall many sockets against the service, directly and through deploy/nginx.conf, while good clients ask it (SERVING R3).

python benchmarks/slow_loris.py BUNDLE [--sockets 1000] [--seconds 20]: prints a table, writes results/slow_loris.json and exits
with 1 unless good clients got 200 for 99 % of their searches through nginx, `/livez` of the admin listener stayed
under 100 ms at the 99th percentile, and the service was itself again within 10 s after the sockets closed. Stalled sockets send
half of their headers or of a body, then a byte a second, and come back when they are cut off; they and the good clients are
processes of their own, at addresses of their own (127.0.0.0/8). Without nginx on this machine only the direct half runs.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import re
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
HEAD = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
STALLED = {"headers": HEAD, "bodies": HEAD + b'Content-Length: 2000\r\n\r\n{"queries": ["'}
GOOD, ASKED = 10, json.dumps({"queries": ["sort an array"], "top_k": 5}).encode()
Address = tuple[str, int]


def main() -> None:
    """Run the experiment and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sockets", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the scenarios")
    parser.add_argument("--no-result", action="store_true", help="print the result and write no file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, served(given.bundle) as (public, admin):
        rows = [scenario("direct", kind, public, admin, given.sockets, given.seconds) for kind in STALLED]
        if shutil.which("nginx") is None:
            print("nginx is not installed here; without it only the direct half is measured", file=sys.stderr)
        else:
            with proxied(Path(scratch), public) as front:
                rows += [scenario("nginx", kind, front, admin, given.sockets, given.seconds) for kind in STALLED]
    print(
        f"{'through':9}{'stalled':9}{'searches':>9}{'200':>8}{'p50 ms':>8}{'p99 ms':>8}{'livez p99 ms':>14}{'recovery s':>12}"
    )
    for row in rows:
        print(
            f"{row['through']:9}{row['stalled']:9}{row['searches']:9}{row['ok']:8.2%}{row['p50_ms']:8.1f}{row['p99_ms']:8.1f}"
            f"{row['livez_p99_ms']:14.1f}{row['recovery_s']:12.2f}"
        )
    result = {"sockets": given.sockets, "seconds": given.seconds, "good_clients": GOOD, "scenarios": rows}
    if not given.no_result:
        from machine import describe, write_result  # with torch, which the processes that stall can do without

        write_result("slow_loris", {"machine": describe(), **result})
    sys.exit(0 if all(map(passes, rows)) else 1)


def passes(row: dict[str, Any]) -> bool:
    """Return whether a scenario's figures are those of R3."""
    held = row["through"] == "direct" or row["ok"] >= 0.99
    return bool(held and row["livez_p99_ms"] <= 100 and row["recovery_s"] <= 10)


def scenario(through: str, kind: str, front: Address, admin: Address, sockets: int, seconds: float) -> dict[str, Any]:
    """Stall, ask, let go; return what good clients and the prober of `/livez` saw."""
    context = multiprocessing.get_context("spawn")  # this process has threads by now
    stop, seen = context.Event(), context.Queue()
    attack = context.Process(target=stall, args=(front, STALLED[kind], sockets, stop, seen))
    attack.start()
    held = seen.get(timeout=60)
    livez = context.Queue()
    prober = context.Process(target=probe, args=(admin, seconds, livez))
    prober.start()
    asked: list[tuple[bool, float]] = []
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=ask, args=(front, f"127.0.2.{number + 1}", until, asked)) for number in range(GOOD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    probed = livez.get(timeout=60)
    prober.join()
    stop.set()
    returned = seen.get(timeout=60)
    attack.join()
    spent = np.array([took for _, took in asked]) * 1000
    return {
        "through": through,
        "stalled": kind,
        "sockets_at_once": held,
        "sockets_in_all": returned,
        "searches": len(asked),
        "ok": sum(good for good, _ in asked) / len(asked),
        "p50_ms": round(float(np.percentile(spent, 50)), 2),
        "p99_ms": round(float(np.percentile(spent, 99)), 2),
        "livez_p99_ms": round(float(np.percentile(probed, 99)) * 1000, 2),
        "recovery_s": recovery(front),
    }


def stall(front: Address, sent: bytes, sockets: int, stop: Any, seen: Any) -> None:
    """Hold so many sockets that never finish a request, until told to stop; tell how many came to be at once and in all."""
    ready, in_all = selectors.DefaultSelector(), 0

    def begin() -> None:
        nonlocal in_all
        raw = socket.socket()
        raw.bind((f"127.0.1.{in_all % 250 + 1}", 0))
        raw.settimeout(2)
        try:
            raw.connect(front)
            raw.sendall(sent)
        except OSError:
            raw.close()
            return
        raw.setblocking(False)
        ready.register(raw, selectors.EVENT_READ)
        in_all += 1

    for _ in range(sockets):
        begin()
    seen.put(len(ready.get_map()))
    dripped = time.monotonic()
    while not stop.is_set():
        for key, _ in ready.select(0.1):  # it speaks only to say goodbye
            ready.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
            begin()
        if time.monotonic() - dripped >= 1:
            dripped = time.monotonic()
            for key in list(ready.get_map().values()):
                try:
                    key.fileobj.send(b"x")  # type: ignore[union-attr]
                except OSError:
                    continue  # the next look finds it closed
    for key in list(ready.get_map().values()):
        key.fileobj.close()  # type: ignore[union-attr]
    seen.put(in_all)


def ask(front: Address, source: str, until: float, asked: list[tuple[bool, float]]) -> None:
    """Search again and again, on a new connection every ten times; note whether it was answered, and the seconds it took."""
    while time.monotonic() < until:
        connection = http.client.HTTPConnection(*front, timeout=10, source_address=(source, 0))
        for _ in range(10):
            start = time.monotonic()
            good = searched(connection)
            asked.append((good, time.monotonic() - start))
            if not good or time.monotonic() > until:
                break
            time.sleep(0.05)
        connection.close()


def searched(connection: http.client.HTTPConnection) -> bool:
    """Return whether a search is answered with 200."""
    try:
        connection.request("POST", "/v1/search", ASKED, {"Content-Type": "application/json", "Host": "localhost"})
        reply = connection.getresponse()
        reply.read()
    except (OSError, http.client.HTTPException):
        return False
    return reply.status == 200


def probe(admin: Address, seconds: float, livez: Any) -> None:
    """Ask the admin listener whether the service lives, twenty times a second; tell how long each answer took."""
    took, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        start = time.monotonic()
        connection = http.client.HTTPConnection(*admin, timeout=10)
        try:
            connection.request("GET", "/livez")
            good = connection.getresponse().status == 200
        except OSError:
            good = False
        connection.close()
        took.append(time.monotonic() - start if good else 10.0)
        time.sleep(0.05)
    livez.put(took)


def recovery(front: Address, most: float = 30.0) -> float:
    """Return how many seconds pass until ten searches in a row, each on a connection of its own, are answered in a second."""
    start, first, row = time.monotonic(), 0.0, 0
    while row < 10 and time.monotonic() < start + most:
        began = time.monotonic()
        connection = http.client.HTTPConnection(*front, timeout=5)
        row, first = (row + 1, first or began) if searched(connection) and time.monotonic() - began < 1 else (0, 0.0)
        connection.close()
    return round(first - start, 2) if row == 10 else most


@contextmanager
def served(bundle: Path) -> Iterator[tuple[Address, Address]]:
    """Serve the bundle in a process of its own; yield the public and the admin address."""
    command = [sys.executable, "-m", "dexml", "serve", str(bundle), "--port", "0", "--admin-port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        public, admin = (("127.0.0.1", int(port)) for port in re.findall(r"http://127\.0\.0\.1:(\d+)/", line))
        yield public, admin
    finally:
        process.terminate()
        process.communicate(timeout=60)


@contextmanager
def proxied(folder: Path, behind: Address) -> Iterator[Address]:
    """Run nginx with deploy/nginx.conf, but for addresses, files and TLS; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as other:
        port, unused = free.getsockname()[1], other.getsockname()[1]
    changed = {
        r"^user .*;$": "" if os.getuid() else "user root;",
        r"^pid .*;$": f"pid {folder}/pid;",
        r"listen 80;": f"listen 127.0.0.1:{unused};",
        r"listen 443 ssl;": f"listen 127.0.0.1:{port};",
        r"^ *ssl_.*;$": "",
        r"server 127\.0\.0\.1:8080": f"server {behind[0]}:{behind[1]}",
        r"/var/log/nginx/dexml\.log": f"{folder}/access.log",
        r"^http \{$": "http {\n" + "".join(f"{name}_temp_path {folder}/{name};\n" for name in TEMPORARY),
    }
    text = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    for pattern, replacement in changed.items():
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert count, f"deploy/nginx.conf has no {pattern}"
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    command = ["nginx", "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log", "-g", "daemon off;"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(("127.0.0.1", port), process)
        yield "127.0.0.1", port
    finally:
        process.terminate()
        process.wait(20)


TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def wait_for(address: Address, process: subprocess.Popen[bytes]) -> None:
    """Wait until something listens."""
    for _ in range(100):
        assert process.poll() is None, "nginx has ended; its error.log says why"
        with socket.socket() as raw:
            if raw.connect_ex(address) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens at {address}")


if __name__ == "__main__":
    main()
