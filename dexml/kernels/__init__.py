"""Kernel backends and the choice between them: the fastest that serves a call, or the reason why none does."""

from __future__ import annotations

from dexml.errors import InputError
from dexml.kernels.base import Kernels, Prepared
from dexml.table import Table, unknown
from dexml.types import Problem

KERNELS: Table[Kernels] = Table(
    "kernel backend",
    {
        "triton": "dexml.kernels.triton_gpu:TritonKernels",
        "numba": "dexml.kernels.numba_cpu:NumbaKernels",
        "reference": "dexml.kernels.reference:ReferenceKernels",
    },
)


def choose(device: str = "cpu", backend: str | None = None, problem: Problem | None = None) -> Kernels:
    """Return the first backend in order of preference that supports the problem, or the one asked for by name.

    Raises InputError with every backend's reason when none does, or with the named backend's reason.
    """
    problem = problem or Problem(device=device)
    if backend is not None and backend not in KERNELS:
        raise unknown("kernel backend", backend, list(KERNELS))
    reasons = []
    for name in [backend] if backend else list(KERNELS):
        reason = KERNELS[name].unsupported(problem)
        if reason is None:
            return KERNELS.build(name)
        reasons.append(f"{name}: {reason}")
    raise InputError("no kernel backend serves this call (" + "; ".join(reasons) + ")")


__all__ = ["KERNELS", "Kernels", "Prepared", "choose"]
