"""The load generator against hand-made servers, and a part of the service's soak, in seconds."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import load

    return load


def against(load, answer, drive):
    """Return the samples of `drive(load)` against a server that gives `answer(number)`: seconds to wait, and raw bytes."""

    async def run():
        count, ended = 0, asyncio.Semaphore(0)

        async def serve(reader, writer):
            nonlocal count
            raw = OK
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while raw and b"close" not in raw and await reader.readuntil(b"\r\n\r\n"):
                    number, count = count, count + 1
                    wait, raw = answer(number)
                    await asyncio.sleep(wait)
                    writer.write(raw)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            ended.release()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        made = load.Load("127.0.0.1", port, [load.get("localhost", "/")])
        async with server:
            await drive(made)
            for _ in range(made.connections):
                await ended.acquire()
        return made.samples

    return asyncio.run(run())


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def test_an_open_loop_charges_a_pause_for_all_that_it_kept_waiting(load):
    samples = against(load, lambda number: (0.5 if number == 0 else 0.0, OK), lambda made: made.open(100, 0.5, 1))
    assert len(samples) == 50
    late = [sample.seconds for sample in samples]
    assert max(late) > 0.45 and sorted(late)[25] > 0.15  # over one connection, the pause is everybody's


def test_a_closed_loop_with_a_rate_keeps_to_it(load):
    samples = against(load, lambda number: (0.0, OK), lambda made: made.closed(10, 1.0, 50))
    assert 40 <= len(samples) <= 60


def test_refusals_and_lost_answers_are_counted(load):
    answers = (OK, BUSY, b"")
    samples = against(load, lambda number: (0.0, answers[number % 3]), lambda made: made.closed(1, 0.3))
    found = load.summary(samples)
    assert set(found["statuses"]) == {"200", "429", "no answer"} and set(found["retry_after"]) == {"3"}
    assert found["requests"] == sum(row["requests"] for row in found["statuses"].values())
    assert found["statuses"]["200"]["p50"] <= found["statuses"]["200"]["max"]


def test_a_part_of_the_soak():
    """Deadlines, leaving clients, and swaps under load; `make soak` runs all of it, and for longer."""
    command = [sys.executable, BENCHMARKS / "soak_serve.py", "--quick", "--no-result", "--only", "R4", "R5", "R7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0 and [row["row"] for row in rows] == ["R4", "R5", "R7"], done.stdout + done.stderr
    assert rows[2]["figures"]["mixed"] == 0 and rows[2]["figures"]["answers"] > 0
