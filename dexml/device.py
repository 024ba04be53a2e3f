"""Device, number type and FAISS, chosen once and said with the reason. Nothing falls back in silence."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch

from dexml.errors import InputError

FAISS_WHEELS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu11", "faiss-gpu-cu12")


@dataclass(frozen=True)
class Choice:
    """What was chosen (`name`) and `reason`, in words for a log line."""

    name: str
    reason: str


def cache_folder() -> Path:
    """Return dexml's folder in the user's cache; what lies there can be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dexml"


def fast_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 matrices faster than float32 ones (AVX-512 BF16 or AMX)."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def faiss_wheel() -> str | None:
    """Return the installed FAISS distribution, or None.

    Raises InputError when there are several: their files overwrite each other, and what then runs is a matter of chance.
    """
    found = []
    for wheel in FAISS_WHEELS:
        try:
            metadata.version(wheel)
        except metadata.PackageNotFoundError:
            continue
        found.append(wheel)
    if len(found) > 1:
        raise InputError(
            f"{' and '.join(found)} are both installed and overwrite each other; "
            f"run: pip uninstall -y {' '.join(found)}; pip install 'dexml[cpu]' (or 'dexml[gpu]')"
        )
    return found[0] if found else None


def import_faiss() -> ModuleType:
    """Return the faiss module, imported after torch (the order that is safe on Linux, faiss issue 4273).

    Raises InputError when no wheel, or more than one, is installed.
    """
    if faiss_wheel() is None:
        raise InputError("the index 'faiss' needs FAISS: pip install 'dexml[cpu]' (or 'dexml[gpu]' on an NVIDIA GPU)")
    import faiss

    return faiss


def faiss_gpus() -> Choice:
    """Return how many GPUs FAISS can use as "cpu" or "cuda", with the reason."""
    faiss = import_faiss()
    if not hasattr(faiss, "index_cpu_to_gpu"):
        return Choice("cpu", f"{faiss_wheel()} has no GPU code")
    if faiss.get_num_gpus() == 0:
        return Choice("cpu", f"{faiss_wheel()} sees no NVIDIA GPU")
    return Choice("cuda", f"{faiss_wheel()} sees {faiss.get_num_gpus()} GPU(s)")
