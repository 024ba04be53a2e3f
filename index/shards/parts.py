"""A version cut into parts: a folder for each shard, sealed as versions are, that a machine may have without the others.

BUNDLE/shards/v000002-3f2a91bc/2-of-4/manifest.json     which part of which version, and the SHA-256 of the other files
BUNDLE/shards/v000002-3f2a91bc/2-of-4/rows.safetensors  its label rows, float32 (n, D)
BUNDLE/shards/v000002-3f2a91bc/2-of-4/index/            what its index keeps

The name tells version, index and cuts apart. A part is made where it is not there yet, by whoever serves the bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dexml import bundle as bundle_of
from dexml import manifest as manifest_of
from dexml import versions
from dexml.bundle import Bundle
from dexml.errors import InputError
from dexml.manifest import Entry, Row
from index import INDEXES

FOLDER = "shards"
ROWS = "rows.safetensors"


class PartManifest(BaseModel):
    """What a part says of itself: rows `first` … `first` + `rows` of a version whose manifest has the checksum `manifest`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    version: str
    manifest: str
    shard: Annotated[int, Ge(0)]
    shards: Annotated[int, Ge(1)]
    first: Annotated[int, Ge(0)]
    rows: Annotated[int, Ge(0)]
    dimension: Annotated[int, Ge(1)]
    index: Row
    rerank: Row
    files: dict[str, Entry] = {}
    sha256: str = ""

    def digest(self) -> str:
        """Return the SHA-256 that `sha256` must be."""
        fields = self.model_dump(mode="json", exclude={"sha256"})
        return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def cuts(labels: int, shards: int) -> tuple[int, ...]:
    """Return where `labels` rows are cut into `shards` runs of about the same length, (0, …, labels)."""
    return tuple(labels * shard // shards for shard in range(shards + 1))


def spread(bundle: Bundle, index: Row, at: Sequence[int]) -> list[Path]:
    """Return the folder of each part of a version, cut at `at` (0, …, L) and behind `index`; those missing are made.

    Raises InputError when an index cannot be built of so few labels, or the disk is full.
    """
    facts = {"manifest": bundle.manifest.sha256, "index": index.model_dump(mode="json"), "cuts": list(at)}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    home = bundle.root.parent / FOLDER / f"{bundle.root.name}-{digest}"
    folders = [home / f"{shard}-of-{len(at) - 1}" for shard in range(len(at) - 1)]
    with bundle_of.told(bundle.root.parent):
        home.mkdir(parents=True, exist_ok=True)
        for shard, folder in enumerate(folders):
            if not folder.exists():
                _write(bundle, index, shard, at, folder)
        prune(bundle.root.parent)
    return folders


def read(folder: Path) -> tuple[PartManifest, Tensor]:
    """Return a part's manifest and rows, mapped, every checksum verified. Raises InputError that names the file."""
    file = folder / manifest_of.FILE
    try:
        manifest = PartManifest.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise InputError(f"bundle: {file} is missing; is the folder on this machine?") from None
    except ValidationError as error:
        raise InputError(f"bundle: {file}: {error.errors(include_url=False)[0]['msg']}") from None
    if manifest.digest() != manifest.sha256:
        raise InputError(f"bundle: {file} was changed after it was written (its SHA-256 differs)")
    try:
        manifest_of.verify_files(folder, manifest.files)
        rows = load_file(folder / ROWS)["rows"]
    except InputError as error:
        raise InputError(f"{error}; remove the folder, and it is made anew") from None
    except SafetensorError as error:
        raise InputError(f"bundle: {folder / ROWS}: {error}") from None
    return manifest, rows


def prune(root: Path) -> None:
    """Remove the parts of versions that the bundle `root` no longer keeps."""
    kept = set(versions.names(root))
    for home in (root / FOLDER).iterdir():
        if home.name.rpartition("-")[0] not in kept:
            shutil.rmtree(home, ignore_errors=True)


def _write(bundle: Bundle, index: Row, shard: int, at: Sequence[int], folder: Path) -> None:
    first, last = at[shard], at[shard + 1]
    rows = bundle.embeddings[first:last]
    scratch = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")  # two services may make the same part
    try:
        (scratch / "index").mkdir(parents=True)
        try:
            save_file({"rows": rows.contiguous()}, scratch / ROWS)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(str(error)) from None
        if len(rows):
            built = INDEXES.build(index.name, index.options)
            built.check(len(rows), bundle.manifest.dimension)
            built.build(rows)
            built.save(scratch / "index")
        facts = PartManifest(
            version=bundle.root.name,
            manifest=bundle.manifest.sha256,
            shard=shard,
            shards=len(at) - 1,
            first=first,
            rows=len(rows),
            dimension=bundle.manifest.dimension,
            index=index,
            rerank=bundle.manifest.rerank,
            files=manifest_of.seal(scratch),
        )
        facts = facts.model_copy(update={"sha256": facts.digest()})
        (scratch / manifest_of.FILE).write_text(facts.model_dump_json(indent=1), encoding="utf-8")
        for path in scratch.rglob("*"):
            if path.is_file():
                path.chmod(0o444)  # mapped by whoever serves it
        try:
            os.rename(scratch, folder)
        except OSError:
            if not folder.exists():  # else the other one was quicker
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


__all__ = ["FOLDER", "PartManifest", "cuts", "prune", "read", "spread"]
