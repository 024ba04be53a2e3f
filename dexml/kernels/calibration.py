"""Where one data flow becomes faster than another on this machine: measured once, kept in the user's cache folder.

FlashDecoding++ (Hong et al., 2024) chooses the flow of a product by its shape. The crossovers depend on caches, memory and
cores, so they are measured here and never guessed per call; `dexml info --kernels` prints them, and measures them anew with
`--measure`. They decide about speed alone: every flow gives the same lists and log-partitions.
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from dexml.device import cache_folder

log = logging.getLogger(__name__)
Setting = TypeVar("Setting")
REPEATS = 4  # of a timing, of which the shortest counts


class Crossovers(BaseModel):
    """The crossovers of one machine; the defaults were measured on two AVX-512 cores and hold until the first measurement."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows_up_to: int = 4
    """Queries up to which a matrix-vector loop scans an integer copy; tiles of 16 or 32 queries above."""
    narrow_up_to: int = 16
    """Queries up to which tiles of 16 are used."""
    alone_up_to: int = 64
    """Queries up to which torch's part of a pass runs on one thread."""
    block: int = 256
    """Labels whose scores are in cache at once."""
    copy_from: int = 16_384
    """Labels (of 384 numbers) from which an int16 copy is faster to scan than the float32 rows."""
    bytes_from: int = 1 << 25
    """Numbers of a label matrix from which an int8 copy is faster for one query than an int16 one."""
    softmax_two_passes_from: int | None = None
    """Scores of a softmax, all rows, from which it takes two passes; None: by the caches' size."""


@cache
def crossovers() -> Crossovers:
    """Return what was measured on this machine, or measure it now, which takes seconds and happens once.

    Processes that start together wait for the one that measures.
    """
    kept = read()
    if kept is not None:
        return kept
    try:
        with _alone():
            return read() or measure()
    except OSError as error:  # no home, or a full or read-only disk: no reason not to work
        log.warning("crossovers of the kernels are not kept (%s): the built-in ones are used", error)
        return Crossovers()


@cache
def known() -> Crossovers:
    """Return what was measured on this machine, or the built-in crossovers; never measures."""
    return read() or Crossovers()


def path() -> Path:
    """Return the file of this machine: another processor, number of threads or version of numba or torch has another."""
    versions = "-".join(metadata.version(name) for name in ("numba", "torch"))
    key = f"{_processor()}-{torch.get_num_threads()}-{versions}".lower()
    return cache_folder() / "kernels" / ("".join(c if c.isalnum() or c in ".-" else "_" for c in key) + ".json")


def read() -> Crossovers | None:
    """Return what is kept for this machine; None where nothing is, or nothing that can be read."""
    try:
        return Crossovers.model_validate_json(path().read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def measure() -> Crossovers:
    """Measure on random rows, keep and return the crossovers."""
    from dexml.kernels.trials import trials

    start = time.perf_counter()
    log.info("measuring the kernels' crossovers on this machine, once")
    found = trials()
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, file)
    known.cache_clear()
    log.info("measured in %.1f s, kept in %s", time.perf_counter() - start, file)
    return found


def fastest(
    settings: Sequence[Setting], run: Callable[[Setting], object], before: Callable[[], object] = lambda: None
) -> Setting:
    """Return the setting whose `run` is shortest: taken in turn, so that a drift of the machine hits all alike.

    `before` is called ahead of each and not timed.
    """
    times = {setting: float("inf") for setting in settings}
    for setting in settings:
        run(setting)  # compiles, and warms the caches
    for _ in range(REPEATS):
        for setting in settings:
            before()
            start = time.perf_counter()
            run(setting)
            times[setting] = min(times[setting], time.perf_counter() - start)
    log.debug("%s", times)
    return min(times, key=lambda setting: times[setting])


@contextmanager
def _alone() -> Iterator[None]:
    folder = path().parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return "-".join(value.strip() for name, value in facts.items() if name.strip() in ("model name", "model", "stepping"))
