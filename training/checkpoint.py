"""Checkpoints: safetensors and JSON, written whole or not at all, checked when read, enough to go on with the same run.

OUT/checkpoints/phase_1_step_00000123/{parameters,optimizer,random}.safetensors, state.json (with their SHA-256); and
extra.safetensors where a step has more to keep (mined negatives)
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dexml.errors import InputError
from dexml.manifest import flush, sha256

OLD = ".old"  # a checkpoint while another one of the same step takes its place


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a run needs to go on: `parameters`, `optimizer` moments, torch's `random` state, JSON-able `facts`, `extra`."""

    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: Tensor
    facts: dict[str, Any]
    extra: dict[str, Tensor] = field(default_factory=dict)


def folder(out: Path) -> Path:
    """Return where the checkpoints of a run lie."""
    return out / "checkpoints"


def save(out: Path, checkpoint: Checkpoint, phase: int, step: int) -> Path:
    """Write a checkpoint beside the last one, rename it into place, and then remove every other one.

    Raises InputError when the disk is full or cannot be written; the last checkpoint is then as it was.
    """
    place = folder(out)
    target = place / f"phase_{phase}_step_{step:08d}"
    scratch = target.with_suffix(".tmp")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        parts = {
            "parameters": checkpoint.parameters,
            "optimizer": checkpoint.optimizer,
            "random": {"state": checkpoint.random},
            **({"extra": checkpoint.extra} if checkpoint.extra else {}),
        }
        sums = {}
        for name, tensors in parts.items():
            path = scratch / f"{name}.safetensors"
            try:
                save_file(tensors, path)
            except SafetensorError as error:  # how safetensors reports a full disk
                raise OSError(str(error)) from None
            flush(path)
            sums[path.name] = sha256(path)
        state = scratch / "state.json"
        state.write_text(json.dumps({**checkpoint.facts, "sha256": sums}, indent=1), encoding="utf-8")
        flush(state)
        flush(scratch)
        if target.is_dir():  # saved twice at one step: at no instant is there no checkpoint
            shutil.rmtree(target.with_suffix(OLD), ignore_errors=True)
            os.rename(target, target.with_suffix(OLD))
        os.rename(scratch, target)
        flush(place)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        reason = error.strerror or error
        raise InputError(f"checkpoint: {target} cannot be written: {reason}; {last_good(out)}; --resume goes on") from None
    for other in place.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
    return target


def last(out: Path) -> Path | None:
    """Return where the newest complete checkpoint of a run lies, or None."""
    found = [path for path in folder(out).glob("phase_*") if path.is_dir() and path.suffix in ("", OLD)]
    return max(found, key=lambda path: (path.stem, path.suffix != OLD), default=None)


def last_good(out: Path) -> str:
    """Return where the newest checkpoint is, in words."""
    path = last(out)
    return "no checkpoint was taken yet" if path is None else f"the last good checkpoint is {path}"


def newest(out: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint of a run, or None. Raises InputError when it is damaged."""
    path = last(out)
    if path is None:
        return None
    try:
        facts = json.loads((path / "state.json").read_text(encoding="utf-8"))
        for name, expected in facts["sha256"].items():
            if sha256(path / name) != expected:
                raise InputError(f"{path / name} was changed after it was written (its SHA-256 differs)")
        return Checkpoint(
            load_file(path / "parameters.safetensors"),
            load_file(path / "optimizer.safetensors"),
            load_file(path / "random.safetensors")["state"],
            facts,
            load_file(path / "extra.safetensors") if "extra.safetensors" in facts["sha256"] else {},
        )
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, SafetensorError) as error:
        raise InputError(f"{path}: the checkpoint is damaged ({error})") from None


def clear(out: Path) -> None:
    """Remove the checkpoints of a run."""
    shutil.rmtree(folder(out), ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, trained: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimizer's moments of the `trained` parameters as "parameter/moment" -> tensor."""
    return {
        f"{name}/{moment}": value
        for name, parameter in trained.items()
        for moment, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, trained: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned, each moment where its parameter is."""
    for key, value in tensors.items():
        name, _, moment = key.rpartition("/")
        optimizer.state[trained[name]][moment] = value.to(trained[name].device)


@torch.no_grad()
def restore_parameters(trained: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Fill the `trained` parameters. Raises InputError when the checkpoint has others."""
    if trained.keys() != tensors.keys():
        odd = sorted(trained.keys() ^ tensors.keys())
        raise InputError(f"--resume: the checkpoint has other parameters than this run ({odd[0]!r})")
    for name, value in tensors.items():
        trained[name].copy_(value)
