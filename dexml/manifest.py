"""A version's manifest, and the check of every file against it: sizes, SHA-256 by block, and its own.

Needs no torch, so that a wrong path, or a changed byte, is told at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import BaseModel, ConfigDict, ValidationError

from dexml.errors import InputError

SCHEMA: Literal[2] = 2
FILE = "manifest.json"
BLOCK = 64 << 20  # bytes of a file that share a checksum: they are hashed side by side, and damage has a place
_READ = 1 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Entry(_Part):
    """A file of the version: its size in bytes and the SHA-256 of each block of 64 MiB, the last one shorter."""

    size: Annotated[int, Ge(0)]
    sha256: tuple[str, ...]


class Row(BaseModel):
    """A row of a table by `name`, with the options it was built with."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Return the options."""
        return dict(self.model_extra or {})


class DataFacts(_Part):
    """The data set it was trained on: `train_rows` and `propensity` (A, B) are what the PSP metrics need."""

    path: str
    format: str
    propensity: tuple[float, float]
    train_rows: Annotated[int, Ge(1)]


class TrainingFacts(_Part):
    """How it came to be; `finished` is False for a run that was interrupted, `fingerprint` tells config and data apart."""

    finished: bool
    step: int
    steps: int
    fingerprint: str
    config: dict[str, Any]
    commit: str | None
    python: str
    versions: dict[str, str]


class Parent(_Part):
    """The version that this one continues: the same labels after its log's first `records` records."""

    version: str
    records: Annotated[int, Ge(0)]


class MemoryFacts(_Part):
    """The training queries that a version keeps (`dexml.memory`), and what they weigh in an answer (`index.recall`).

    There are `queries` of them, with their texts or without. An answer hears the `neighbours` nearest ones, by the softmax of
    their cosines at `temperature`, with λ = `weight`; 0 leaves the answers as they are.
    """

    queries: Annotated[int, Ge(1)]
    texts: bool
    weight: Annotated[float, Ge(0)]
    temperature: Annotated[float, Gt(0)]
    neighbours: Annotated[int, Ge(1)]


class Manifest(_Part):
    """Everything that a version says of itself. `sha256` is over the canonical JSON of all the other fields."""

    schema_version: Literal[2] = SCHEMA
    dexml: str
    created: str
    name: str
    labels: Annotated[int, Ge(0)]
    dimension: Annotated[int, Ge(1)]
    temperature: Annotated[float, Gt(0)]
    index: Row
    rerank: Row
    examples: tuple[str, ...] = ()
    data: DataFacts
    training: TrainingFacts
    memory: MemoryFacts | None = None
    """None, and then not written, where no training query is kept: a version reads as it did before there were any."""
    parent: Parent | None = None
    files: dict[str, Entry] = {}
    sha256: str = ""

    def digest(self) -> str:
        """Return the SHA-256 that `sha256` must be."""
        fields = {name: value for name, value in self.as_json().items() if name != "sha256"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Return all fields as they are written."""
        return self.model_dump(mode="json", exclude={"memory"} if self.memory is None else None)

    def sealed(self) -> Manifest:
        """Return the manifest with its own checksum."""
        return self.model_copy(update={"sha256": self.digest()})

    def write(self, path: Path) -> None:
        """Write the manifest as JSON, flushed."""
        path.write_text(json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        flush(path)


def read(folder: Path) -> Manifest:
    """Return the manifest of a version's folder, its own checksum compared. Raises InputError that names the file."""
    path = folder / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"bundle: {path} is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error})") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA:
        raise InputError(f"{path}: schema {version!r} is not the one this dexml reads ({SCHEMA})")
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: damaged ({'.'.join(map(str, first['loc']))}: {first['msg'].lower()})") from None
    if manifest.digest() != manifest.sha256:
        raise InputError(f"{path} was changed after it was written (its SHA-256 differs)")
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """Compare every file of a version's folder with its manifest; raises as `verify_files` does."""
    verify_files(folder, manifest.files)


def verify_files(folder: Path, files: Mapping[str, Entry]) -> None:
    """Compare every file of a folder but its manifest with what `files` says, by relative name.

    Raises InputError that names the file when one is missing or extra, and its block of 64 MiB when a byte has changed.
    """
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {FILE}
    for name, expected in files.items():
        if name not in present:
            raise InputError(f"bundle: {folder / name} is missing")
        size = (folder / name).stat().st_size
        if size != expected.size:
            raise InputError(f"bundle: {folder / name} has {size} bytes, expected {expected.size}")
    # Desktops leave hidden files behind; nothing of ours, and nothing that we open, is hidden.
    extra = sorted(name for name in present - set(files) if not Path(name).name.startswith("."))
    if extra:
        raise InputError(f"bundle: {folder / extra[0]} is not part of this bundle")
    for name, found in zip(files, _all_blocks([folder / name for name in files]), strict=True):
        expected = files[name]
        for block, (one, other) in enumerate(zip(found, expected.sha256, strict=True)):
            if one != other:
                last = min((block + 1) * BLOCK, expected.size) - 1
                raise InputError(
                    f"bundle: {folder / name} was changed after it was written "
                    f"(the SHA-256 of block {block + 1} of {len(found)}, bytes {block * BLOCK} to {last}, differs)"
                )


def seal(folder: Path) -> dict[str, Entry]:
    """Flush every file of a folder to the disk; return sizes and checksums by relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files:
        flush(file)
    blocks = _all_blocks(files)
    return {
        file.relative_to(folder).as_posix(): Entry(size=file.stat().st_size, sha256=tuple(found))
        for file, found in zip(files, blocks, strict=True)
    }


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _all_blocks(files: Sequence[Path]) -> list[list[str]]:
    """Return the SHA-256 of each block of each file; hashing leaves Python's lock, so that all cores share the work."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        counts = [max(1, -(-file.stat().st_size // BLOCK)) for file in files]
        jobs = [
            [pool.submit(_block, file, block * BLOCK) for block in range(count)]
            for file, count in zip(files, counts, strict=True)
        ]
        return [[job.result() for job in row] for row in jobs]


def _block(file: Path, start: int) -> str:
    digest, left = hashlib.sha256(), BLOCK
    buffer = memoryview(bytearray(_READ))
    with file.open("rb", buffering=0) as source:
        source.seek(start)
        while left and (got := source.readinto(buffer[: min(_READ, left)])):
            digest.update(buffer[:got])
            left -= got
    return digest.hexdigest()
