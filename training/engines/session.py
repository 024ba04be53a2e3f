"""A Ray session for one command: on this machine alone, or on the cluster at an address, which must ask for a token."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from types import ModuleType

from dexml.errors import InputError

STORE_BYTES = 512 * 2**20  # blocks of texts and their answers: a few megabytes a worker


@contextmanager
def session(workers: int | None, address: str | None) -> Iterator[tuple[ModuleType, int]]:
    """Give ray, connected, and how many workers there are to be: `workers`, or one a processor.

    Without an `address` Ray is started on this machine, and ended; with one, such as "10.0.0.1:6379" or "auto", the cluster
    there is used. What workers print stays in Ray's logs. Raises InputError without ray, for a cluster that cannot be reached,
    and for one beyond this machine where RAY_AUTH_MODE is not "token": whoever reaches Ray's ports runs any code.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray: Ray is missing; pip install 'dexml[ray]'")
    if address is not None and address != "auto" and not _is_here(address) and os.environ.get("RAY_AUTH_MODE") != "token":
        raise InputError(
            f"--address: {address} is beyond this machine, and RAY_AUTH_MODE is not 'token': set it here and on every node"
        )
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray warns that it will do anyway
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's ports are open on all interfaces, even so; it reads the token when it is imported.
    if address is None and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    import ray

    if ray.is_initialized():  # by whoever called us
        yield ray, workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        return
    count = workers or len(os.sched_getaffinity(0))
    here = {"num_cpus": count, "include_dashboard": False, "object_store_memory": STORE_BYTES} if address is None else {}
    try:
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **here)
    except Exception as error:  # a node that does not start in time raises nothing narrower
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"--engine ray: {address or 'Ray on this machine'} cannot be reached: {said}") from None
    try:
        yield ray, workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


def _is_here(address: str) -> bool:
    host = address.removeprefix("ray://").rpartition(":")[0].strip("[]") or address
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
