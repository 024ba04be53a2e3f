"""`gunicorn -c deploy/gunicorn.conf.py` as a process, and its settings from the environment."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dexml.errors import InputError
from serve import environment, keys

ROOT = Path(__file__).parents[2]


def gunicorn(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **{f"DEXML_{name}": value for name, value in variables.items()}}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    return said.strip()


def test_it_serves_as_dexml_serve_does(tiny_bundle: Path, tmp_path: Path, unused_ports):
    port, admin = next(unused_ports), next(unused_ports)
    key = keys.add(tmp_path / "keys.json", "reader", "read")
    wrong = gunicorn("-w", "2", BUNDLE=str(tiny_bundle), PORT=str(next(unused_ports)))
    process = gunicorn(
        BUNDLE=str(tiny_bundle), PORT=str(port), ADMIN_PORT=str(admin), KEYS=str(tmp_path / "keys.json"), MAX_INFLIGHT="7"
    )
    try:
        line = process.stdout.readline()
        assert re.search(rf"10 labels .* at http://127.0.0.1:{port}/, probes and metrics at http://127.0.0.1:{admin}/", line)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/v1/info", headers={"Authorization": f"Bearer {key}"})
        reply = connection.getresponse()
        assert reply.status == 200 and json.loads(reply.read())["limits"]["inflight"] == 7
        connection.request("GET", "/v1/info")
        reply = connection.getresponse()
        assert reply.status == 401 and reply.headers["Content-Type"] == "application/problem+json" and reply.read()
        probe = http.client.HTTPConnection("127.0.0.1", admin, timeout=20)
        probe.request("GET", "/readyz")
        assert probe.getresponse().status == 200
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        status = 200  # until the signal has reached the worker
        while status == 200 and time.monotonic() - start < 5:
            connection.request("GET", "/v1/info", headers={"Authorization": f"Bearer {key}"})
            reply = connection.getresponse()
            status = reply.status
            reply.read()
        assert status == 503, "it drains, as `dexml serve` does"
        assert process.wait(20) == 0 and time.monotonic() - start < 15
    finally:
        process.kill()
        process.communicate()
    assert ended(wrong) == "dexml: one worker of its own kind, please: leave out -w and -k (deploy/README.md says why)"


def test_what_dexml_serve_refuses_is_refused_in_one_line(tiny_bundle: Path):
    process = gunicorn(BUNDLE=str(tiny_bundle), HOST="0.0.0.0")
    assert ended(process) == "dexml: --host 0.0.0.0: everybody who reaches it could ask; give --keys FILE, or --insecure"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "DEXML_BUNDLE must name a bundle"),
        ({"DEXML_BUNDLE": ""}, "DEXML_BUNDLE must name a bundle"),
        ({"DEXML_COLOUR": "red"}, "DEXML_COLOUR: there is no such setting"),
        ({"DEXML_PORT": "many"}, "DEXML_PORT: Input should be a valid integer"),
        ({"DEXML_INSECURE": "perhaps"}, "DEXML_INSECURE: Input should be a valid boolean"),
        ({"DEXML_ALLOWED_HOSTS": "a.example,http://b"}, "DEXML_ALLOWED_HOSTS: "),
        ({"DEXML_BUNDLE": "/nonexistent"}, "does not exist"),
        ({"DEXML_WRITABLE": "1", "DEXML_HOST": "0.0.0.0", "DEXML_INSECURE": "1", "DEXML_BUNDLE": "x"}, "could write"),
    ],
)
def test_variables_that_make_no_sense_are_named(variables: dict[str, str], words: str):
    with pytest.raises(InputError, match=re.escape(words)):
        environment.settings(variables)


def test_every_setting_can_be_given(tiny_bundle: Path):
    found = environment.settings(
        {
            "DEXML_BUNDLE": str(tiny_bundle),
            "DEXML_ALLOWED_HOSTS": "a.example,b.example",
            "DEXML_CLIENT_TIMEOUT_S": "2.5",
            "DEXML_WRITABLE": "true",
            "HOME": "/",
        }
    )
    assert found.allowed_hosts == ("a.example", "b.example") and found.client_timeout_s == 2.5 and found.writable
    assert found.bundle == tiny_bundle and found.port == 8080
