"""Where a run came from: the commit it was started in, the versions of what computes, and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

VERSIONED = (
    *("dexml", "torch", "numpy", "numba", "scipy", "tokenizers", "transformers", "sentence-transformers", "accelerate"),
    *("faiss-cpu", "faiss-gpu"),
)


def commit() -> str | None:
    """Return the commit of the git repository around the working directory, "…-dirty" with changes, or None outside one."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def versions() -> dict[str, str]:
    """Return the installed version of each package that a result depends on."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return processor, cores that may be used, threads, memory in GiB, and the GPU or None."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def facts() -> dict[str, Any]:
    """Return commit, Python and versions, as a bundle's manifest has them."""
    return {"commit": commit(), "python": platform.python_version(), "versions": versions()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
