"""Ray, started or joined, on our terms: on loopback alone or with a token, no dashboard, no statistics sent, little memory.

Ray runs whatever whoever reaches it sends (CVE-2023-48022), so every process that does is inside the trust boundary
(docs/sharding.md). Its settings are environment variables that must be there before `import ray`, in this process and in
those it starts.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from dexml.errors import InputError

NEEDED = "--engine ray needs Ray 2.52 or newer, below 3: pip install 'dexml[ray]'"
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


def start(address: str | None, cpus: float) -> Any:
    """Join the cluster at `address`, or start one with `cpus` in this process's care, and return the module `ray`.

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
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    try:
        if address is None:
            ray.init(
                address="local",  # whatever else runs on this machine, or RAY_ADDRESS names
                num_cpus=max(1, round(cpus + 0.5)),
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray has no narrower word for a raylet that does not start
        told = " ".join(str(error).split())[:300]
        raise InputError(f"Ray: {f'the cluster at {address} cannot be joined' if address else 'no cluster'}: {told}") from None
    return ray


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _token_file() -> Path:
    named = os.environ.get(_TOKEN_FILE)
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


__all__ = ["NEEDED", "check", "start"]
