"""Ray, started or joined, on our terms: on loopback alone or with a token, no dashboard, no statistics sent, little memory.

Ray runs whatever whoever reaches it sends (CVE-2023-48022), so every process that does is inside the trust boundary
(docs/sharding.md). Its settings are environment variables that must be there before `import ray`, in this process and in
those it starts.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import math
import os
import secrets
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dexml.errors import InputError

NEEDED = "--engine ray needs Ray 2.52 or newer, below 3: pip install 'dexml[ray]'"
PATIENCE_S = 2.0  # for what is told to end
TRIES = 2  # Ray gives a node 30 s to come up, which a busy machine may need
STORE_BYTES = 100 << 20  # answers are small, and travel beside Ray's object store where they are not
_MODE, _TOKEN, _TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def check(address: str | None) -> None:
    """Raise InputError unless Ray is installed and the cluster at `address` (None: one of our own) may be joined.

    Clusters at other than loopback addresses must ask for a token: RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, in the
    file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError(NEEDED)
    if address is None:
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or not host:
        raise InputError(f"--ray-address: {address!r} is not HOST:PORT, the address that `ray start --head` printed")
    if _is_loopback(host):
        return
    if os.environ.get(_MODE) != "token":
        raise InputError(
            f"--ray-address {address}: whoever reaches a cluster without a token runs code on it; set {_MODE}=token"
        )
    if not (os.environ.get(_TOKEN) or _token_file().is_file()):
        raise InputError(f"--ray-address {address}: {_MODE}=token, and no token: set {_TOKEN} or {_TOKEN_FILE}")


def start(address: str | None, cpus: float, gpus: bool = False) -> Any:
    """Join the cluster at `address`, or start one with `cpus` in this process's care, and return the module `ray`.

    With `gpus` one of our own has all that Ray finds on this machine, else none.

    One of our own listens on loopback alone, asks for a token that nobody else has, and ends with this process. Raises
    InputError when the cluster cannot be reached.
    """
    check(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets anything that runs beside go first
    if address is None and "ray" not in sys.modules:
        # Without several machines Ray binds to loopback: the switch is meant for systems that have no clusters at all.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ[_MODE], os.environ[_TOKEN] = "token", secrets.token_hex(32)
        os.environ.pop(_TOKEN_FILE, None)
    import ray

    version = tuple(int(part) for part in ray.__version__.split(".")[:2])
    if not (2, 52) <= version < (3, 0):
        raise InputError(f"{NEEDED}; this is {ray.__version__}")
    if ray.is_initialized():
        return ray
    how: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if address is None:  # "local": whatever else runs on this machine, or RAY_ADDRESS names
        how |= {"address": "local", "num_cpus": math.ceil(cpus), "include_dashboard": False}
        how |= {} if gpus else {"num_gpus": 0}
        how["object_store_memory"] = STORE_BYTES
    for tries_left in reversed(range(TRIES)):
        try:
            ray.init(**how)
            break
        except Exception as error:  # Ray has no narrower word for a node that is not up in time
            ray.shutdown()
            if not tries_left or isinstance(error, ValueError | ConnectionError):
                told = " ".join(str(error).split())[:300]
                where = f"the cluster at {address} cannot be joined" if address else "no cluster of our own"
                raise InputError(f"Ray: {where}: {told}") from None
    return ray


def stop(ray: Any, address: str | None) -> None:
    """Let go of the cluster at `address`; end what is left of one of our own (None).

    Ray's agents notice by themselves that their node has gone, but take up to half a minute, and hold their ports until then.
    """
    ray.shutdown()
    if address is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + PATIENCE_S
        while (left := _own_processes()) and time.monotonic() < until:
            for process in left:
                with suppress(OSError):
                    os.kill(process, number)
            time.sleep(0.05)


def _own_processes() -> list[int]:
    """Return the processes of the cluster that was started here: they alone have its token. None where there is no /proc."""
    token, found = f"{_TOKEN}={os.environ.get(_TOKEN, '')}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            program = (folder / "cmdline").read_bytes()
            is_ray = program.startswith(b"ray::") or b"/ray/" in program
            if is_ray and int(folder.name) != os.getpid() and token in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _token_file() -> Path:
    named = os.environ.get(_TOKEN_FILE)
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


__all__ = ["NEEDED", "check", "start", "stop"]
