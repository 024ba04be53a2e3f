"""Rows in numbered parts: each appears whole or not at all, so that a killed job goes on with those that are missing.

OUT/job.json           what makes the rows: model, side, input, by checksum; another one is refused
OUT/part-000000.npy    float32 (n, D), the rows of the first n texts
OUT/part-000000.json   n, the file's SHA-256, and how many rows are 0; written after it: the part is finished
OUT/done.json          how many rows and parts there are; written last

Needs no torch: `Rows.open(OUT)` reads what a job left.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from dexml import manifest
from dexml.errors import InputError, StorageError
from dexml.positives import Float32Array

JOB, DONE = "job.json", "done.json"


class _Note(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Job(_Note):
    """What decides the rows: the encoder's checksum, the side, the input file by checksum, and the rows of a part.

    `model` is its name and `input` the file's, for people.
    """

    schema_version: Literal[1] = 1
    model: str
    encoder: str
    side: Literal["query", "label"]
    dimension: int
    part_rows: int
    input: str
    sha256: str


class Part(_Note):
    """A finished part: its `rows`, the `sha256` of its file, and how many rows are 0, of texts the model knows no word of."""

    rows: int
    sha256: str
    unknown: int


class Done(_Note):
    """A finished job."""

    rows: int
    parts: int


Note = TypeVar("Note", bound=_Note)


def begin(out: Path, job: Job) -> None:
    """Make `out`, or go on there. Raises InputError, with the difference, where it holds another job, or anything else."""
    if (out / JOB).exists():
        kept = _read(out / JOB, Job)
        if said := _difference(kept, job):
            raise InputError(f"{out}: was begun with {said}; give a new folder, or remove this one")
        return
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise InputError(f"{out}: is there already and holds no {JOB}; give a new folder")
    _write(out / JOB, job.model_dump_json(indent=1).encode() + b"\n")


def finished(out: Path, number: int) -> Part | None:
    """Return what a part says, or None where it is still to be made; its rows are not read."""
    note = _place(out, number).with_suffix(".json")
    return _read(note, Part) if note.exists() and _place(out, number).exists() else None


def write(out: Path, number: int, rows: Float32Array) -> Part:
    """Write a part, flushed to the disk before it takes its name, and return what it says. Raises InputError on a full disk."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(rows, dtype=np.float32), allow_pickle=False)
    data = buffer.getbuffer()
    part = Part(rows=len(rows), sha256=hashlib.sha256(data).hexdigest(), unknown=int((~rows.any(axis=1)).sum()))
    place = _place(out, number)
    _write(place, data)
    _write(place.with_suffix(".json"), part.model_dump_json().encode() + b"\n")
    return part


def finish(out: Path, parts: int) -> Done:
    """Write down that the job is through. Raises InputError where a part is missing: `out` is not one folder for all."""
    rows = 0
    for number in range(parts):
        part = finished(out, number)
        if part is None:
            raise InputError(f"{_place(out, number)} is missing: {out} must be one folder, shared by all nodes")
        rows += part.rows
    for scratch in out.glob(".*.tmp"):  # of processes that were killed: no part is missing, so none is being written
        scratch.unlink(missing_ok=True)
    done = Done(rows=rows, parts=parts)
    _write(out / DONE, done.model_dump_json().encode() + b"\n")
    return done


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows float32 (N, D) of a finished job, part by part, mapped from the files; `rows[i]` is that of text i."""

    out: Path
    job: Job
    done: Done

    @staticmethod
    def open(out: Path) -> Rows:
        """Return the rows in `out`. Raises InputError where there is no job, or one that is not through."""
        if not (out / JOB).exists():
            raise InputError(f"{out}: holds no {JOB}; `dexml embed RUN TEXTS {out}` makes it")
        job = _read(out / JOB, Job)
        if not (out / DONE).exists():
            raise InputError(f"{out}: the job is not through; the same `dexml embed` goes on with it")
        return Rows(out, job, _read(out / DONE, Done))

    def __len__(self) -> int:
        return self.done.rows

    def part(self, number: int, *, verify: bool = False) -> Float32Array:
        """Return one part's rows (n, D), not to be written to. Raises InputError where its file is damaged.

        The size is compared always, the checksum with `verify`.
        """
        path, part = _place(self.out, number), finished(self.out, number)
        if part is None:
            raise InputError(f"{path} is missing")
        try:
            rows: Float32Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error})") from None
        if rows.dtype != np.float32 or rows.shape != (part.rows, self.job.dimension):
            raise InputError(f"{path}: damaged (float32 {(part.rows, self.job.dimension)} is expected, found {rows.shape})")
        if verify and manifest.sha256(path) != part.sha256:
            raise InputError(f"{path} was changed after it was written (its SHA-256 differs)")
        return rows

    def parts(self, *, verify: bool = False) -> Iterator[Float32Array]:
        """Yield the parts in the order of the texts."""
        for number in range(self.done.parts):
            yield self.part(number, verify=verify)

    def __getitem__(self, row: int) -> Float32Array:
        """Return the row (D) of a text."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        found: Float32Array = self.part(row // self.job.part_rows)[row % self.job.part_rows]
        return found


def _place(out: Path, number: int) -> Path:
    return out / f"part-{number:06d}.npy"


def _difference(kept: Job, now: Job) -> str:
    """Return what another job was made with, in words; empty where the rows would be the same."""
    if kept.encoder != now.encoder:
        return f"the model {kept.model}, and this is {now.model}"
    if kept.sha256 != now.sha256:
        name = kept.input if kept.input != now.input else f"{kept.input} as it was"
        return f"other texts ({name}, SHA-256 {kept.sha256[:12]}…), and {now.input} is {now.sha256[:12]}… now"
    for field, option in (("side", "--side"), ("part_rows", "--rows"), ("dimension", "dimension")):
        if getattr(kept, field) != getattr(now, field):
            return f"{option} {getattr(kept, field)}, and not {getattr(now, field)}"
    return ""


def _read(path: Path, kind: type[Note]) -> Note:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        said = error.errors()[0]["msg"].lower() if isinstance(error, ValidationError) else error.strerror
        raise InputError(f"{path}: damaged ({said})") from None


def _write(path: Path, data: Any) -> None:
    """Write a file that appears whole, and survives a power cut once it is there."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        manifest.flush(path.parent)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from None


__all__ = ["Done", "Job", "Part", "Rows", "begin", "finish", "finished", "write"]
