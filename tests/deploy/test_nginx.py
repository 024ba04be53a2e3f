"""deploy/nginx.conf with a real nginx before a real service: what passes, what is refused and how, and slow-loris sockets."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed (apt-get install nginx-light)")


@pytest.fixture(scope="module")
def loris() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module("slow_loris")


@pytest.fixture(scope="module")
def backend():
    """A stand-in for one request at a time, reached under localhost's names and search.example."""
    code = (
        "import sys; sys.path.insert(0, 'tests/serve'); from stand_in import StandIn; from serve import wsgi\n"
        "from serve.settings import Settings\n"
        "settings = Settings(port=0, max_inflight=1, allowed_hosts=('search.example',))\n"
        "raise SystemExit(wsgi.run(settings, wsgi.listen(settings), StandIn))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    yield "127.0.0.1", int(process.stdout.readline().split("/ ")[0].rpartition(":")[2])
    process.terminate()
    process.communicate(timeout=30)


@pytest.fixture(scope="module")
def front(loris: ModuleType, backend, tmp_path_factory: pytest.TempPathFactory):
    with loris.proxied(tmp_path_factory.mktemp("nginx"), backend) as address:
        yield address


class Reply:
    def __init__(self, address: tuple[str, int], method: str, path: str, body: bytes | None, headers: dict[str, str]):
        with closing(http.client.HTTPConnection(*address, timeout=20, source_address=(headers.pop("from"), 0))) as connection:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            self.status, self.headers, self.body = reply.status, reply.headers, reply.read()

    @property
    def code(self) -> str:
        return json.loads(self.body)["error"]["code"]


def ask(address: tuple[str, int], path: str, body: object = None, source: str = "127.0.0.1", **headers: str) -> Reply:
    sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Host": "localhost", "Content-Type": "application/json", "from": source}
    return Reply(
        address, "GET" if sent is None else "POST", path, sent, given | {k.replace("_", "-"): v for k, v in headers.items()}
    )


SEARCH = {"queries": ["sort an array"]}


def test_a_search_passes_with_its_request_id(front):
    reply = ask(front, "/v1/search", SEARCH, X_Request_ID="mine-1")
    assert reply.status == 200 and reply.headers["X-Request-ID"] == "mine-1" and reply.headers["Server-Timing"]
    assert len(ask(front, "/v1/search", SEARCH).headers["X-Request-ID"]) == 32, "nginx gives one where the client has none"


def test_the_host_decides_as_it_does_without_a_proxy(front):
    assert ask(front, "/readyz", Host="search.example").status == 200
    refused = ask(front, "/readyz", Host="rebound.example")
    assert refused.status == 421 and refused.code == "forbidden_host"


def test_metrics_are_not_for_the_public(front, backend):
    assert ask(backend, "/metrics").status == 200
    for path in ("/metrics", "/%6detrics", "//metrics", "/v1/../metrics", "/metrics?x"):
        reply = ask(front, path)
        assert reply.status == 404 and b"dexml_" not in reply.body, path


def test_the_services_own_refusals_pass_as_they_are(front):
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, front, "/v1/search", {"queries": ["slow 1000"]})
        time.sleep(0.4)
        busy = ask(front, "/v1/search", SEARCH)
        assert slow.result().status == 200
    assert busy.status == 429 and busy.code == "overloaded" and int(busy.headers["Retry-After"]) >= 1
    assert "proxy" not in busy.body.decode()
    long = ask(front, "/v1/search", b" " * 2_050_000)
    assert long.status == 413 and b"2000000" in long.body, "between the service's limit and the proxy's"


def test_what_the_proxy_refuses_has_the_same_form(front, loris, tmp_path: Path):
    long = ask(front, "/v1/search", b" " * 2_200_000)
    assert long.status == 413 and long.code == "body_too_large"
    assert long.headers["Content-Type"] == "application/problem+json" and "proxy" in long.body.decode()
    many = [front] * 300
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda address: ask(address, "/livez", source="127.0.3.1"), many))
    refused = [reply for reply in replies if reply.status == 429]
    assert refused and all(reply.code == "overloaded" and reply.headers["Retry-After"] == "1" for reply in refused)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    with loris.proxied(tmp_path, nobody) as alone:
        down = ask(alone, "/v1/search", SEARCH)
    assert down.status == 502 and down.code == "not_ready" and down.headers["Retry-After"] == "1"


def test_with_tls_it_is_what_nginx_accepts(tmp_path: Path):
    """The file as it is, but for the certificate's place and the log's."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    names = [tmp_path / "privkey.pem", tmp_path / "fullchain.pem"]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run(
        [*make, "-subj", "/CN=search.example", "-keyout", names[0], "-out", names[1]], check=True, capture_output=True
    )
    ssl.create_default_context().load_verify_locations(names[1])
    text = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    for old, new in {"/etc/dexml/tls": tmp_path, "/var/log/nginx": tmp_path, "/run/nginx.pid": tmp_path / "pid"}.items():
        assert old in text
        text = text.replace(old, str(new))
    (tmp_path / "nginx.conf").write_text(text, encoding="utf-8")
    command = ["nginx", "-t", "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if os.getuid() and "Permission denied" in done.stderr:
        pytest.skip("nginx -t makes its folders as root")
    assert done.returncode == 0 and "[warn]" not in done.stderr, done.stderr


def test_good_clients_notice_nothing_of_slow_ones(tiny_bundle: Path):
    command = [
        sys.executable,
        "benchmarks/slow_loris.py",
        str(tiny_bundle),
        "--sockets",
        "150",
        "--seconds",
        "2",
        "--no-result",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[:2] for row in rows] == [[a, b] for a in ("direct", "nginx") for b in ("headers", "bodies")], done.stderr
    for row in rows:  # how fast is the benchmark's to say: machines of tests have other work
        assert float(row[3].rstrip("%")) >= 99 and float(row[7]) < 10, done.stdout
