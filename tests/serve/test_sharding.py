"""What `dexml serve` refuses of shards, and a service over shards as a process: where it listens, and what it leaves behind."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from pathlib import Path

import pytest

from dexml.errors import InputError
from index.shards import ray_cluster
from serve.policy import check
from serve.settings import Settings

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="the extra `ray` is not installed")


@pytest.mark.parametrize("settings", [{"shards": 2}, {"replicas": 2}, {"shard_gpus": 1}, {"ray_address": "127.0.0.1:6379"}])
def test_shards_need_an_engine(tiny_bundle: Path, settings: dict[str, object]):
    option = f"--{next(iter(settings)).replace('_', '-')}"
    with pytest.raises(InputError, match=f"^{option}: .*--engine ray"):
        check(Settings(bundle=tiny_bundle, **settings))


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_extra_is_named(tiny_bundle: Path):
    with pytest.raises(InputError, match=r"pip install 'dexml\[ray\]'"):
        check(Settings(bundle=tiny_bundle, engine="ray"))


@needs_ray
def test_a_cluster_that_others_reach_must_ask_for_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for address in (None, "127.0.0.1:6379", "localhost:6379", "[::1]:6379"):
        ray_cluster.check(address)
    for address in ("192.0.2.7:6379", "head.example:6379"):
        with pytest.raises(InputError, match="set RAY_AUTH_MODE=token"):
            ray_cluster.check(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(InputError, match="and no token"):
        ray_cluster.check("192.0.2.7:6379")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    ray_cluster.check("192.0.2.7:6379")
    for address in ("6379", ":6379", "head.example", "ray://head.example:x"):
        with pytest.raises(InputError, match="HOST:PORT"):
            ray_cluster.check(address)


@needs_ray
def test_gpus_that_are_not_there_are_told_at_once(monkeypatch: pytest.MonkeyPatch):
    from index.shards.ray_engine import Layout, RayEngine

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match=r"2 shards need 2000 GPUs, and the cluster has \d+ \(--shard-gpus\)"):
        RayEngine(Layout(2, gpus=1000))


def listening(session: str) -> list[str]:
    """Return the local addresses, in hexadecimal, of all sockets on which processes of a session listen."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"DEXML_TEST_SESSION={session}".encode() not in (process / "environ").read_bytes().split(b"\0"):
                continue
            own = {os.readlink(file) for file in (process / "fd").iterdir()}
            for table in ("tcp", "tcp6"):
                for line in (process / "net" / table).read_text().splitlines()[1:]:
                    fields = line.split()
                    if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                        found.append(fields[1].partition(":")[0])
        except OSError:  # it has ended
            continue
    return found


@needs_ray
def test_a_process_listens_on_loopback_alone_and_leaves_nothing_behind(tiny_bundle: Path, running_servers, monkeypatch):
    session = f"{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv("DEXML_TEST_SESSION", session)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    command = ["-m", "dexml", "serve", str(tiny_bundle), "--port", "0", "--admin-port", "0", "--engine", "ray", "--shards", "2"]
    with running_servers(command) as (server,):
        assert re.search("10 labels of", server.line), server.process.stderr.read()
        reply = server.post({"queries": ["sorting of arrays"], "top_k": 1})
        assert reply.status == 200 and reply.json["results"][0]["labels"][0]["id"] == "sorting"
        assert reply.json["shards"] == {"total": 2, "ok": 2, "failed": 0}
        loopback = re.compile("0100007F|0000000000000000FFFF00000100007F|00000000000000000000000001000000")
        assert len(addresses := listening(session)) > 4 and all(loopback.fullmatch(address) for address in addresses), addresses
        assert server.end(timeout=40) == 0
    until = time.monotonic() + 20
    while listening(session) and time.monotonic() < until:
        time.sleep(0.2)
    assert not listening(session)
