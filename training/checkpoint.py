"""Checkpoints: safetensors and JSON, written whole or not at all, enough to go on with the same run.

OUT/checkpoints/step_00000123/{parameters,optimizer,random}.safetensors, state.json
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dexml.errors import InputError


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a run needs to go on: `parameters`, `optimizer` moments, torch's random `state`, and JSON-able `facts`."""

    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: Tensor
    facts: dict[str, Any]


def folder(out: Path) -> Path:
    """Return where the checkpoints of a run lie."""
    return out / "checkpoints"


def save(out: Path, checkpoint: Checkpoint, step: int, keep: int = 1) -> Path:
    """Write a checkpoint beside the others and rename it into place; then remove all but the newest `keep`."""
    place = folder(out)
    place.mkdir(parents=True, exist_ok=True)
    target = place / f"step_{step:08d}"
    scratch = place / f"step_{step:08d}.{os.getpid()}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    save_file(checkpoint.parameters, scratch / "parameters.safetensors")
    save_file(checkpoint.optimizer, scratch / "optimizer.safetensors")
    save_file({"state": checkpoint.random}, scratch / "random.safetensors")
    (scratch / "state.json").write_text(json.dumps(checkpoint.facts, indent=1), encoding="utf-8")
    for file in scratch.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    shutil.rmtree(target, ignore_errors=True)
    os.rename(scratch, target)
    for old in _complete(place)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(out: Path) -> Checkpoint:
    """Return the newest complete checkpoint of a run. Raises InputError when there is none."""
    found = _complete(folder(out))
    if not found:
        raise InputError(f"--resume: {folder(out)} holds no checkpoint")
    path = found[-1]
    return Checkpoint(
        load_file(path / "parameters.safetensors"),
        load_file(path / "optimizer.safetensors"),
        load_file(path / "random.safetensors")["state"],
        json.loads((path / "state.json").read_text(encoding="utf-8")),
    )


def clear(out: Path) -> None:
    """Remove the checkpoints of a finished run."""
    shutil.rmtree(folder(out), ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's moments as "parameter/moment" -> tensor."""
    return {
        f"{name}/{moment}": value
        for name, parameter in module.named_parameters()
        for moment, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned."""
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        name, _, moment = key.rpartition("/")
        optimizer.state[parameters[name]][moment] = value


def _complete(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("step_*") if path.is_dir() and path.suffix != ".tmp")
