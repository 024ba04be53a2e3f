"""A bundle's manifest, and the check of every file against it: sizes and SHA-256. Needs no torch, so that a wrong path,
or a changed byte, is told at once.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dexml.errors import InputError

SCHEMA = 1
FILE = "manifest.json"


def verify(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the root and manifest of the bundle at `path` or `path`/bundle, every file's size and checksum compared.

    Raises InputError that names the file when one is missing, extra, or has a changed byte.
    """
    root = path if (path / FILE).exists() else path / "bundle"
    manifest = _read(root, path)
    _compare(root, manifest["files"])
    return root, manifest


def _read(root: Path, asked: Path) -> dict[str, Any]:
    if not asked.is_dir():
        raise InputError(f"bundle: the folder {asked} does not exist")
    try:
        manifest = json.loads((root / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"bundle: {asked} holds no {FILE}; `dexml train CONFIG.toml` makes a bundle") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{root / FILE}: damaged ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(f"{root / FILE}: schema {found!r} is not the one this dexml reads ({SCHEMA})")
    missing = {"files", "labels", "dimension", "temperature", "index", "rerank", "name"} - set(manifest)
    if missing:
        raise InputError(f"{root / FILE}: damaged, {', '.join(sorted(missing))} missing")
    return manifest


def _compare(root: Path, files: dict[str, dict[str, Any]]) -> None:
    """Check size and SHA-256 of every file, and that no file is there that the manifest does not know."""
    present = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} - {FILE}
    for name, expected in files.items():
        if name not in present:
            raise InputError(f"bundle: {root / name} is missing")
        size = (root / name).stat().st_size
        if size != expected["size"]:
            raise InputError(f"bundle: {root / name} has {size} bytes, expected {expected['size']}")
        if sha256(root / name) != expected["sha256"]:
            raise InputError(f"bundle: {root / name} was changed after it was written (its SHA-256 differs)")
    extra = sorted(present - set(files))
    if extra:
        raise InputError(f"bundle: {root / extra[0]} is not part of this bundle")


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
