"""`dexml.client` against real servers: the service, a full one, one that starts late or ends, and foreign ones."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("httpx")
from dexml.client import AsyncClient, Client, DexmlError, Label, NewLabel, Ranked, Reason

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client(server):
    with Client(server.url) as client:
        yield client


@contextmanager
def foreign(*answers: str):
    """A server of raw answers, one a connection, the last one for ever; yields its address and the requests it read."""
    seen: list[str] = []

    def work(listener: socket.socket) -> None:
        number = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                read = b""
                while b"\r\n\r\n" not in read:
                    read += connection.recv(65536)
                seen.append(read.decode())
                head, _, body = answers[min(number, len(answers) - 1)].partition("\n\n")
                number += 1
                if head != "hang up":
                    lines = f"HTTP/1.1 {head}\nConnection: close\nContent-Length: {len(body)}".splitlines()
                    connection.sendall("\r\n".join([*lines, "", body]).encode())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=work, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


GOOD = '200 OK\nContent-Type: application/json\n\n{"labels": [{"id": "a", "text": "b"}], "next": null}'
PAGE = "502 Bad Gateway\nContent-Type: text/html\n\n<html><h1>Bad Gateway</h1></html>"
BUSY = '429 Too Many Requests\nRetry-After: 0\n\n{"error": {"code": "overloaded"}, "detail": "full"}'


def test_a_search_is_what_the_service_answers(client, server):
    found = client.search(["sort an array", "cluster points"], top_k=3, normalize="all", request_id="mine-1")
    raw = server.post({"queries": ["sort an array", "cluster points"], "top_k": 3, "normalize": "all"}).json
    assert (found.id, found.index_version, len(found)) == ("mine-1", raw["index_version"], 2)
    for result, expected in zip(found.results, raw["results"], strict=True):
        assert [label.id for label in result.labels] == [label["id"] for label in expected["labels"]]
        known = {field.name: expected["labels"][0][field.name] for field in fields(Label)}
        assert result.labels[0] == Label(**known) and result.exact and result.known
    with pytest.raises(AttributeError):
        found[0].labels[0].score = 1.0


def test_embeddings_may_be_an_array(client, stand_in):
    row = stand_in.embed("sort an array").numpy()
    by_text = client.search("sort an array")[0]
    for rows in (row[None], [row], row[None].astype(np.float64).tolist()):
        by_row = client.search(embeddings=rows)[0]
        assert [label.id for label in by_row.labels] == [label.id for label in by_text.labels]


def test_info_and_labels(real):
    with Client(real.url) as client:
        info = client.info()
        labels = list(client.labels())
        assert info.labels == len(labels) == 10 and info.limits["queries"] == 64 and "bundle" in info.everything
        assert client.label(labels[3].id) == labels[3]
        with pytest.raises(DexmlError) as caught:
            client.label("../info")
        assert (caught.value.status, caught.value.code) == (404, "not_found")


def test_writes_go_in_parts(writable):
    with Client(writable.url) as client:
        before = client.info().labels
        new = [NewLabel(f"new/{number}", f"a thing of kind {number}") for number in range(1500)]
        written = client.upsert(new)
        assert (written.upserted, written.replaced, written.labels) == (1500, 0, before + 1500)
        wide = [NewLabel(f"row {n}", "by its row", np.full(client.info().dimension, 1 / 3 + n)) for n in range(3)]
        assert client.upsert(wide, replace=False).upserted == 3
        with pytest.raises(DexmlError) as caught:
            client.upsert([*(NewLabel(f"more {n}", "a thing") for n in range(1000)), *wide], replace=False)
        assert caught.value.code == "conflict" and caught.value.__notes__ == ["1000 labels of this call were written before"]
        assert client.label("new/1499").text == "a thing of kind 1499"
        assert sum(1 for _ in client.labels()) == before + 2503
        gone = client.delete(label.id for label in new)
        assert gone.deleted == 1500 and gone.labels == before + 1003


def test_rows_and_rankings_are_read_in_the_order_of_the_texts():
    rows = '200 OK\n\n{"data": [{"index": 1, "embedding": [0, 1]}, {"index": 0, "embedding": [1, 0]}], "model": "m"}'
    ranking = '200 OK\n\n{"results": [{"index": 1, "relevance_score": 0.5, "document": {"text": "b"}, "id": null}]}'
    with foreign(rows, ranking) as (url, seen), Client(url) as client:
        assert client.embed(["a", "b"]) == [[1.0, 0.0], [0.0, 1.0]]
        assert client.rerank("a", ["a", "b"], 1) == [Ranked(1, 0.5, "b")]
    assert seen[0].startswith("POST /v1/embeddings ") and seen[1].startswith("POST /v1/rerank ")


def test_an_answer_may_say_why():
    label = '{"id": "a", "score": 1, "why": [{"text": "q", "similarity": 0.5}], "from the future": 1}'
    result = f'{{"labels": [{label}], "exact": true, "known": true, "truncated": false}}'
    answer = f'200 OK\n\n{{"id": "r", "model": "m", "index_version": "v1", "results": [{result}], "timing_ms": {{}}}}'
    with foreign(answer) as (url, _), Client(url) as client:
        assert client.search("x", include=["why"])[0].labels == (Label("a", 1, why=(Reason("q", 0.5),)),)


def test_versions_are_listed_and_activated(writable):
    with Client(writable.url) as client:
        first = client.indexes()["versions"][0]["name"]
        client.upsert([NewLabel("later", "a thing that comes later")])
        assert client.label("later").id == "later"
        assert client.activate(first) != first and client.indexes()["index_version"] != first
        with pytest.raises(DexmlError) as caught:
            client.activate("../v1")
        assert caught.value.status == 404


@pytest.fixture(scope="module")
def writable(running_servers, tiny_bundle, tmp_path_factory):
    import shutil

    bundle = tmp_path_factory.mktemp("client") / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    with running_servers(["-m", "dexml", "serve", str(bundle), "--port", "0", "--admin-port", "0", "--writable"]) as servers:
        yield servers[0]


def test_a_write_has_one_idempotency_key_over_its_tries():
    answer = '200 OK\n\n{"upserted": 1, "replaced": 0, "deleted": 0, "sequence": 1, "index_version": "v1", "labels": 1}'
    with foreign(BUSY, answer) as (url, seen), Client(url) as client:
        assert client.upsert([NewLabel("a", "b")]).upserted == 1
    keys = [line for request in seen for line in request.splitlines() if line.startswith("Idempotency-Key")]
    assert len(seen) == len(keys) == 2 and len(set(keys)) == 1


def test_the_asynchronous_client_is_the_same(server, real):
    async def ask():
        async with AsyncClient(server.url) as client:
            await client.wait_until_ready()
            answers = await asyncio.gather(*(client.search(f"sort {n}", top_k=2) for n in range(20)))
            with pytest.raises(DexmlError) as caught:
                await client.search("x", top_k=0)
            assert caught.value.code == "top_k_out_of_range"
        async with AsyncClient(real.url) as client:
            return answers, [label.id async for label in client.labels()]

    with ThreadPoolExecutor(1) as pool:  # a thread of its own: the browser of other tests keeps a loop in this one
        answers, labels = pool.submit(lambda: asyncio.run(ask())).result()
    assert [len(answer[0].labels) for answer in answers] == [2] * 20 and len(labels) == 10


def test_a_refusal_says_what_is_wrong(client):
    with pytest.raises(DexmlError) as caught:
        client.search("x", top_k=5000, request_id="mine-2")
    error = caught.value
    assert (error.status, error.code, error.request_id) == (422, "top_k_out_of_range", "mine-2")
    assert "5000" in error.detail and "mine-2" in str(error) and error.retry_after is None


@pytest.fixture(scope="module")
def full(running_servers):
    with running_servers(["tests/serve/stand_in.py", "0", "1"]) as servers:
        yield servers[0]


def test_a_full_server_is_asked_again_when_it_says(full):
    with Client(full.url) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.search, "slow 400")
        time.sleep(0.15)
        with pytest.raises(DexmlError) as caught, Client(full.url, retries=0) as hasty:
            hasty.search("sort")
        assert (caught.value.status, caught.value.code, caught.value.retry_after) == (429, "overloaded", 1.0)
        start = time.monotonic()
        with pytest.raises(DexmlError, match="overloaded"):
            client.search("sort", timeout=0.9)  # Retry-After would be too late: told at once
        assert time.monotonic() - start < 0.8
        assert client.search("sort an array")[0].labels[0].id == "numpy.sort"
        assert 1 <= time.monotonic() - start < 5
        assert slow.result()[0].labels


def test_a_server_that_starts_late_is_waited_for(unused_ports):
    port = next(unused_ports)
    with Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(DexmlError) as caught:
            client.search("sort", timeout=0.3)
        assert (caught.value.status, caught.value.code) == (None, "connect_failed")
        with pytest.raises(DexmlError, match="connect_failed"):
            client.wait_until_ready(0.3)
        program = [sys.executable, "tests/serve/stand_in.py", str(port), "8", "1"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(program, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
            try:
                client.wait_until_ready(30)
                assert client.search("sort an array")[0].labels[0].id == "numpy.sort"
            finally:
                process.terminate()


def test_a_server_that_drains_answers_what_it_took(to_drain):
    server = next(to_drain)
    with Client(server.url, retries=0) as client, ThreadPoolExecutor(1) as pool:
        client.info()
        slow = pool.submit(client.search, "slow 700")
        time.sleep(0.2)
        server.tell()
        assert slow.result()[0].labels
        assert server.process.wait(15) == 0
        with pytest.raises(DexmlError) as caught:
            client.search("sort")
        assert caught.value.status in (None, 503)


def test_a_proxy_page_is_an_error_with_its_status():
    with foreign(PAGE) as (url, seen), Client(url, retries=1) as client, pytest.raises(DexmlError) as caught:
        client.search("x", request_id="mine-3")
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (502, "http_502", "mine-3")
    assert len(seen) == 2


@pytest.mark.parametrize("answers", [(PAGE, GOOD), ("hang up", GOOD), (BUSY, GOOD)])
def test_what_may_be_done_twice_is_asked_again(answers):
    with foreign(*answers) as (url, seen), Client(url) as client:
        assert [label.id for label in client.labels()] == ["a"]
    assert len(seen) == 2


@pytest.mark.parametrize("answer", [PAGE, "hang up"])
def test_what_may_not_be_done_twice_is_not(answer):
    with foreign(answer) as (url, seen), Client(url) as client, pytest.raises(DexmlError):
        client.upsert([NewLabel("a", "b")], replace=False)
    assert len(seen) == 1


def test_the_deadline_of_the_service_is_an_answer():
    late = '504 Gateway Timeout\n\n{"error": {"code": "deadline_exceeded"}, "detail": "no answer within the deadline"}'
    with foreign(late) as (url, seen), Client(url) as client, pytest.raises(DexmlError, match="deadline_exceeded"):
        client.search("x")
    assert len(seen) == 1


@pytest.mark.parametrize("body", ["", "[]", "<html>", '{"results": [{"labels": [{}]}]}', '{"results": 3}', "[" * 100_000])
def test_another_answer_than_documented_is_an_error(body):
    with foreign(f"200 OK\n\n{body}") as (url, _), Client(url) as client, pytest.raises(DexmlError) as caught:
        client.search("x")
    assert (caught.value.status, caught.value.code) == (200, "malformed_answer")


def test_a_date_to_come_back_at():
    from dexml.client.exchange import httpx, retry_after

    def seconds(value: str) -> float | None:
        return retry_after(httpx.Headers({"Retry-After": value}))

    assert 8 < seconds(email.utils.formatdate(time.time() + 10, usegmt=True)) <= 10
    assert seconds(email.utils.formatdate(time.time() - 10, usegmt=True)) == 0
    assert seconds("7") == 7 and [seconds(value) for value in ("", "soon", "-1", "1.5")] == [None] * 4


def test_the_command_line_asks_a_service_as_it_does_a_folder(real, tiny_bundle):
    from click.testing import CliRunner

    from dexml.__main__ import command
    from dexml.errors import InputError

    def ask(where: str, *options: str) -> object:
        done = CliRunner().invoke(command, ["search", where, "sorting of arrays", *options])
        return json.loads(done.stdout) if done.exit_code == 0 else done.exception

    here, there = ask(str(tiny_bundle), "--json"), ask(real.url, "--json")
    assert [answer["id"] for answer in here] == [answer["id"] for answer in there] and here[0].keys() == there[0].keys()
    refused = ask(real.url, "-k", "5000")
    assert isinstance(refused, InputError) and "top_k must be between" in str(refused)


def test_the_key_travels_and_is_not_shown(monkeypatch):
    for key, given in (("secret-1", {}), ("secret-2", {"api_key": "secret-2"})):
        monkeypatch.setenv("DEXML_API_KEY", "secret-1")
        with foreign(GOOD) as (url, seen), Client(url, **given) as client:
            list(client.labels())
            assert f"Authorization: Bearer {key}" in seen[0]
            assert key not in repr(client) and key not in repr(vars(client)["_http"].headers)
    with pytest.raises(ValueError) as caught:
        Client("http://127.0.0.1", api_key="secret\n3")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://host", "127.0.0.1:8080", "http://", "http://me:password@host"])
def test_a_url_that_is_none(url):
    with pytest.raises(ValueError, match="url must be"):
        Client(url)


def test_it_is_light_and_says_what_it_needs():
    code = "import sys; import dexml.client; print({'torch', 'numpy', 'pydantic', 'flask', 'serve'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "set()"
    code = "import sys; sys.modules['httpx'] = None; import dexml.client"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "pip install 'dexml[client]'" in result.stderr
