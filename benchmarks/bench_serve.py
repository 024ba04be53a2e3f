"""What the service takes: capacity, a steady load, an overload, and what HTTP and the queue cost over the retriever alone.

usage: python benchmarks/bench_serve.py [--bundle PATH --queries FILE] [--labels 131072] [--dimension 384] [--quick]
Without --bundle, one of made-up labels behind a bag encoder is served; it is made once and kept under ~/.cache/dexml. The
service is a real `dexml serve`, the load comes from `benchmarks/load.py` in other processes on the same cores. Writes
serve.json and two pictures; exits with 1 where a target is missed. All of it takes about six minutes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import serve_plots
from load import show
from machine import describe, write_result
from rich.console import Console
from rich.table import Table
from serving import Loader, Process, free_port, load, made_bundle, metrics, serving, texts

MAX_INFLIGHT = 256  # the service's default
CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128)
LOADS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.2, 1.6, 2.0)  # of the capacity, for the picture
TOP_K = 10


def main() -> None:
    """Make the bundle, serve it, measure, print, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="serve this one; --queries then names a file with a query a line")
    parser.add_argument("--queries", type=Path)
    parser.add_argument("--labels", type=int, default=131_072)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, to see whether it works")
    parser.add_argument("--no-result", action="store_true", help="print the result and write no file")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in a service: threads that spin here would slow the one asked next
    given = parser.parse_args()
    if (given.bundle is None) != (given.queries is None):
        parser.error("--bundle and --queries go together")
    bundle = given.bundle or made_bundle(given.labels, given.dimension)
    with tempfile.TemporaryDirectory() as scratch:
        queries = given.queries or Path(scratch) / "queries"
        if given.queries is None:
            queries.write_text("\n".join(texts(20_000, 2)), encoding="utf-8")
        result = measure(bundle, queries, given.quick)
    result["targets"] = targets(result)
    report(result)
    if not given.no_result:
        result = {"machine": describe(), "bundle": "made up" if given.bundle is None else bundle.name, **result}
        path = write_result("serve", result)
        print(path)
        draw(result, path.parent)
    sys.exit(0 if all(target["passed"] for target in result["targets"]) else 1)


def measure(bundle: Path, queries: Path, quick: bool) -> dict[str, Any]:
    """Return everything measured on one process that serves `bundle`."""
    short, long, over = ("2", "4", "4") if quick else ("8", "60", "30")
    asked = ("--queries", str(queries), "--fields", json.dumps({"top_k": TOP_K}))
    admin = free_port()
    with serving([str(bundle), "--port", "0", "--admin-port", str(admin)]) as service:
        info = service.ask("GET", "/v1/info").json
        result: dict[str, Any] = {key: info[key] for key in ("labels", "dimension", "model")}
        result["encoder"], result["index"] = info["bundle"]["encoder"], info["bundle"]["index"]
        result["overhead"] = overhead(service, bundle, queries, 20 if quick else 300)
        warm = 0.5 if quick else 1
        closed = {}
        for clients in CLIENTS[:: 3 if quick else 1]:
            closed[clients] = load(service, *asked, "--clients", str(clients), "--seconds", short, "--warm", str(warm))
            show(closed[clients], f"{clients} clients, closed loop")
        result["closed"] = {str(clients): found for clients, found in closed.items()}
        capacity = max(rate_of(found, "200") for found in closed.values())
        result["capacity_per_s"] = capacity
        result["rss_before"] = service.rss()
        result["steady"] = load(service, *asked, "--rate", f"{0.7 * capacity:.2f}", "--seconds", long, "--warm", str(warm))
        show(result["steady"], f"steady, {0.7 * capacity:,.0f} a second")
        result["rss_after"] = service.rss()
        result["overload"] = overload(service, asked, capacity, over, admin)
        open_loop = {}
        for share in LOADS[:: 4 if quick else 1]:
            rate = share * capacity
            open_loop[rate] = load(service, *asked, "--rate", f"{rate:.2f}", "--seconds", short, "--warm", str(warm))
            time.sleep(1)  # what is queued is answered before the next one
        result["open"] = {f"{rate:.1f}": found for rate, found in open_loop.items()}
    return result


def overhead(service: Process, bundle: Path, queries: Path, pairs: int) -> dict[str, float]:
    """Return ms at p50 of a query through the retriever in this process and over HTTP, asked in turn."""
    from index.retriever import Retriever

    retriever = Retriever.open(bundle)
    retriever.warm()
    lines = queries.read_text(encoding="utf-8").splitlines()
    direct, served = [], []
    connection = http.client.HTTPConnection(service.host, service.port)
    for number in range(10 + pairs):
        text = lines[number % len(lines)]
        start = time.perf_counter()
        retriever.search([text], TOP_K)
        middle = time.perf_counter()
        body = json.dumps({"queries": [text], "top_k": TOP_K})
        connection.request("POST", "/v1/search", body, {"Content-Type": "application/json"})
        connection.getresponse().read()
        direct.append(1000 * (middle - start))
        served.append(1000 * (time.perf_counter() - middle))
    connection.close()
    alone, over_http = statistics.median(direct[10:]), statistics.median(served[10:])
    return {
        "retriever_ms": round(alone, 3),
        "http_ms": round(over_http, 3),
        "overhead_ms": round(over_http - alone, 3),
    }


def overload(service: Process, asked: tuple[str, ...], capacity: float, seconds: str, admin: int) -> dict[str, Any]:
    """Return what comes of three times the capacity from four times as many clients as there are places."""
    clients = str(4 * MAX_INFLIGHT)
    running = Loader(
        service, *asked, "--clients", clients, "--rate", f"{3 * capacity:.2f}", "--seconds", seconds, "--warm", "2"
    )
    probing = [
        Loader(service, "--get", "/livez", "--rate", "20", "--seconds", seconds, "--warm", "2"),
        Loader(
            service, "--get", "/livez", "--rate", "20", "--seconds", seconds, "--warm", "2", url=f"http://127.0.0.1:{admin}"
        ),
    ]
    depths: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            depths.append(metrics(admin)["dexml_inflight_requests"])

    watching = threading.Thread(target=watch)
    watching.start()
    result = running.result()
    over.set()
    watching.join()
    show(result, f"overload: {clients} clients, {3 * capacity:,.0f} a second")
    result["livez"], result["livez_admin"] = (probe.result() for probe in probing)
    result["most_inflight"] = max(depths, default=0.0)
    return result


def rate_of(found: dict[str, Any], status: str) -> float:
    """Return answers a second with that status."""
    return float(found["statuses"].get(status, {}).get("per_s", 0.0))


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each target with what was measured and whether it was met."""
    steady, over, closed = result["steady"]["statuses"], result["overload"], result["closed"]
    good, refused = steady.get("200", {}), over["statuses"].get("429", {})
    many = max(rate_of(found, "200") for clients, found in closed.items() if int(clients) >= 32)
    ratio = rate_of(closed.get("32", closed[max(closed, key=int)]), "200") / rate_of(closed["1"], "200")
    waits = over["retry_after"]
    failed = {status: row["requests"] for status, row in over["statuses"].items() if status not in ("200", "429")}
    lives = [(name, over[name]["statuses"]) for name in ("livez", "livez_admin")]
    growth = result["rss_after"] / result["rss_before"] - 1
    added = result["overhead"]["overhead_ms"]
    spread = good.get("p99", 0.0) / good["p50"] if good else float("inf")
    rows = [
        ("capacity (best closed loop)", "", f"{many:,.0f} a second", True),
        ("batching pays: 32 clients over 1", "≥ 3×", f"{ratio:.1f}×", ratio >= 3),
        ("HTTP and queue over the retriever, p50", "≤ 2 ms", f"{added:.2f} ms", added <= 2),
        (
            "steady at 0.7: all answered 200",
            "0 others",
            str({s: r["requests"] for s, r in steady.items()}),
            set(steady) == {"200"},
        ),
        ("steady at 0.7: p99", "≤ 4 × p50", f"{spread:.1f} × {good.get('p50', 0):.1f} ms", spread <= 4),
        ("steady at 0.7: memory", "≤ +1%", f"{growth:+.1%}", growth <= 0.01),
        ("overload: goodput", "≥ 90%", f"{rate_of(over, '200') / many:.0%}", rate_of(over, "200") >= 0.9 * many),
        ("overload: p99 of 429", "≤ 100 ms", f"{refused.get('p99', 0):.1f} ms", bool(refused) and refused["p99"] <= 100),
        ("overload: Retry-After", "integer ≥ 1", str(waits), all(value.isdigit() and int(value) >= 1 for value in waits)),
        ("overload: other answers", "none", str(failed or "none"), not failed),
        (
            "overload: most in flight",
            f"≤ {MAX_INFLIGHT}",
            f"{over['most_inflight']:.0f}",
            over["most_inflight"] <= MAX_INFLIGHT,
        ),
    ]
    for name, found in lives:
        row = found.get("200", {"p99": float("inf")})
        rows.append(
            (f"overload: p99 of {name}", "≤ 100 ms", f"{row['p99']:.1f} ms", set(found) == {"200"} and row["p99"] <= 100)
        )
    return [{"what": what, "target": target, "figure": figure, "passed": passed} for what, target, figure, passed in rows]


def report(result: dict[str, Any]) -> None:
    """Print the targets."""
    table = Table(title=f"{result['labels']:,} labels × {result['dimension']}, {result['encoder']}, {os.cpu_count()} cores")
    for name in ("what", "target", "measured", ""):
        table.add_column(name)
    for target in result["targets"]:
        table.add_row(target["what"], target["target"], target["figure"], "pass" if target["passed"] else "[bold]FAIL")
    Console().print(table)


def draw(result: dict[str, Any], folder: Path) -> None:
    """Draw both pictures beside the result."""
    machine = result["machine"]
    note = f"{result['labels']:,} labels × {result['dimension']}, encoder {result['encoder']}, {machine['cores']} cores of "
    note += f"{machine['processor']}; the clients run on them too"
    closed = [(int(clients), rate_of(found, "200")) for clients, found in result["closed"].items()]
    serve_plots.throughput(folder / "serve_throughput.png", "Throughput by concurrency", closed, note)
    points = []
    for rate, found in [*result["open"].items(), (f"{0.7 * result['capacity_per_s']}", result["steady"])]:
        good = found["statuses"].get("200")
        if good:
            refused = found["statuses"].get("429", {"requests": 0})["requests"] / found["requests"]
            points.append((float(rate), good["p50"], good["p99"], refused))
    serve_plots.latency(folder / "serve_latency.png", "Latency by load", sorted(points), note)


if __name__ == "__main__":
    main()
