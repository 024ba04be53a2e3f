"""A bundle's manifest, and the check of every file against it: sizes and SHA-256, and its own.

Needs no torch, so that a wrong path, or a changed byte, is told at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import BaseModel, ConfigDict, ValidationError

from dexml.errors import InputError

SCHEMA: Literal[1] = 1
FILE = "manifest.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Entry(_Part):
    """A file of the bundle: its size in bytes and its SHA-256."""

    size: Annotated[int, Ge(0)]
    sha256: str


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


class Manifest(_Part):
    """Everything that a bundle says of itself. `sha256` is over the canonical JSON of all the other fields."""

    schema_version: Literal[1] = SCHEMA
    dexml: str
    created: str
    name: str
    labels: Annotated[int, Ge(1)]
    dimension: Annotated[int, Ge(1)]
    temperature: Annotated[float, Gt(0)]
    index: Row
    rerank: Row
    examples: tuple[str, ...] = ()
    data: DataFacts
    training: TrainingFacts
    files: dict[str, Entry]
    sha256: str = ""

    def digest(self) -> str:
        """Return the SHA-256 that `sha256` must be."""
        fields = self.model_dump(mode="json", exclude={"sha256"})
        return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def sealed(self) -> Manifest:
        """Return the manifest with its own checksum."""
        return self.model_copy(update={"sha256": self.digest()})

    def write(self, path: Path) -> None:
        """Write the manifest as JSON."""
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def verify(path: Path) -> tuple[Path, Manifest]:
    """Return the root and manifest of the bundle at `path` or `path`/bundle, every file's size and checksum compared.

    Raises InputError that names the file when one is missing, extra, or has a changed byte.
    """
    if not path.is_dir():
        raise InputError(f"bundle: the folder {path} does not exist")
    # A crash between the two renames of `publish` leaves the old bundle beside the place where the new one was to be.
    places = [path, path / "bundle", path / "bundle.old"]
    root = next((place for place in places if (place / FILE).exists()), None)
    if root is None:
        raise InputError(f"bundle: {path} holds no {FILE}; `dexml train CONFIG.toml` makes a bundle")
    manifest = _read(root / FILE)
    _compare(root, manifest.files)
    return root, manifest


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> Manifest:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
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


def _compare(root: Path, files: dict[str, Entry]) -> None:
    """Check size and SHA-256 of every file, and that no file is there that the manifest does not know."""
    present = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} - {FILE}
    for name, expected in files.items():
        if name not in present:
            raise InputError(f"bundle: {root / name} is missing")
        size = (root / name).stat().st_size
        if size != expected.size:
            raise InputError(f"bundle: {root / name} has {size} bytes, expected {expected.size}")
        if sha256(root / name) != expected.sha256:
            raise InputError(f"bundle: {root / name} was changed after it was written (its SHA-256 differs)")
    # Desktops leave hidden files behind; nothing of ours, and nothing that we open, is hidden.
    extra = sorted(name for name in present - set(files) if not Path(name).name.startswith("."))
    if extra:
        raise InputError(f"bundle: {root / extra[0]} is not part of this bundle")
