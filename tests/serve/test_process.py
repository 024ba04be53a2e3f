"""`dexml serve` as a process: what it refuses in one line, how it starts, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dexml import versions
from dexml.__main__ import main
from dexml.errors import InputError

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("to_drain")  # they start while the other processes of this file run


def serve(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dexml", "serve", "--admin-port", "0", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def one_line(result: subprocess.CompletedProcess[str], words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and words in result.stderr, result.stderr


def test_help_needs_nothing_heavy():
    code = "import sys; from serve.cli import command; print({'torch', 'flask', 'gunicorn', 'pydantic'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "set()"


def test_a_wide_address_needs_keys_or_insecure(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(tmp_path), "--host", "0.0.0.0"])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and "give --keys FILE, or --insecure" in line


@pytest.mark.parametrize("host", ["ü" * 80, "a" * 80, "a\nb", "."])
def test_an_address_that_is_none_is_one_line(host: str):
    from serve.settings import Settings
    from serve.wsgi import listen

    with pytest.raises(InputError, match=r"^cannot listen on .*:0: \w") as caught:
        listen(Settings(host=host, port=0))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_a_host_of_eighty_umlauts(tiny_bundle):
    one_line(serve(tiny_bundle, "--host", "ü" * 80, "--insecure", "--port", "0"), "cannot listen on")


@pytest.mark.parametrize("host", ["a.example:80", "*", "http://a.example/"])
def test_allow_host_takes_names_alone(tmp_path, host: str):
    from click.testing import CliRunner

    from serve.cli import command

    result = CliRunner().invoke(command, [str(tmp_path), "--allow-host", host])
    assert result.exit_code == 2 and "without port and path" in " ".join(result.stderr.split())


def test_a_folder_that_is_no_bundle(tmp_path):
    one_line(serve(tmp_path / "nothing"), "does not exist")


def test_a_bundle_with_a_changed_byte(tiny_bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    file = versions.current(copy)[0] / "embeddings.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.chmod(0o644)
    file.write_bytes(bytes(data))
    one_line(serve(copy, "--port", "0"), "embeddings.safetensors")


def test_a_port_in_use(tiny_bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        one_line(serve(tiny_bundle, "--port", str(taken.getsockname()[1])), "in use")


def test_a_model_that_fails_after_the_fork_ends_the_process_with_one_line(stand_in, tmp_path):
    program = tmp_path / "failing.py"
    program.write_text(
        "from dexml.types import InputError\nfrom serve import wsgi\nfrom serve.settings import Settings\n"
        "def opener():\n    raise InputError('bundle: something inside is odd')\n"
        "settings = Settings(port=0)\nraise SystemExit(wsgi.run(settings, wsgi.listen(settings), opener))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=30, env=environment)
    assert result.returncode == 2 and result.stderr == "dexml: bundle: something inside is odd\n"


def test_it_says_where_it_listens(real):
    assert "10 labels" in real.line and real.url in real.line


def test_ctrl_c_reaches_the_whole_group_drains_and_ends_with_0(to_drain):
    server = next(to_drain)
    address = server.address
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(server.post, {"queries": [f"slow {200 + i}"], "top_k": i + 1}) for i in range(4)]
        time.sleep(0.15)
        os.killpg(server.process.pid, signal.SIGINT)  # as a terminal does
        assert [future.result().status for future in waiting] == [200] * 4
    assert server.process.wait(10) == 0 and "Traceback" not in server.process.stderr.read()
    with pytest.raises(OSError):
        socket.create_connection(address, timeout=1)


def test_sigterm_answers_what_was_accepted_and_refuses_new_work_with_503(to_drain):
    server = next(to_drain)
    kept = http.client.HTTPConnection(*server.address, timeout=10)
    kept.request("GET", "/readyz")
    assert kept.getresponse().read()
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(server.post, {"queries": ["slow 1000"]})
        time.sleep(0.2)
        server.tell(signal.SIGTERM)
        time.sleep(0.3)
        kept.request("GET", "/readyz")
        reply = kept.getresponse()
        assert reply.status == 503 and json.loads(reply.read())["error"]["code"] == "draining"
        assert reply.headers["Connection"] == "close" and reply.headers["Retry-After"]
        assert slow.result().status == 200 and server.process.wait(15) == 0


def test_no_control_socket_is_left(real):
    assert not (Path.home() / ".gunicorn" / "gunicorn.ctl").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_drain_at_once(running_servers, number: int):
    with running_servers(["tests/serve/stand_in.py", "0", "admin_port=0"]) as (server,):
        with socket.create_connection(server.address) as waiting:
            body = json.dumps({"queries": ["slow 9000"], "timeout_ms": 20_000}).encode()
            head = (
                f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            )
            waiting.sendall(f"{head}\r\n\r\n".encode() + body)
            time.sleep(0.3)
            server.process.send_signal(number)
            time.sleep(0.3)
            assert server.process.poll() is None
            server.process.send_signal(number)
            server.process.wait(4)  # far from the 9 s that it would drain
