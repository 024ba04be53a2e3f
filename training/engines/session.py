"""A Ray session for one command: on this machine alone, or on a cluster that asks for a token."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dexml.errors import InputError
from index.shards.ray_cluster import check, start, stop


@contextmanager
def session(workers: int | None, address: str | None) -> Iterator[tuple[Any, int]]:
    """Give ray, connected (`ray_cluster.start`), and how many workers there are to be: `workers`, or one a processor.

    What is connected already, by whoever called us, is used and stays so. What workers print stays in Ray's logs. Raises
    InputError where Ray is missing, cannot be reached, or is beyond this machine and asks for no token.
    """
    check(address)
    known = sys.modules.get("ray")
    connected = known is not None and known.is_initialized()
    try:
        ray = start(address, workers or len(os.sched_getaffinity(0)))
    except InputError:
        raise
    except Exception as error:  # a node that does not start in time raises nothing narrower
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"--engine ray: Ray did not start: {said}") from None
    try:
        yield ray, workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if not connected:
            stop(ray, address)
