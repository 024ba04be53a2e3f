"""The artefact folder: the only thing training and serving share. Published whole or not at all, checked when opened.

BUNDLE/manifest.json        schema, sizes, names, and the SHA-256 of every other file
BUNDLE/encoder/             the dual encoder; sentence-transformers opens it too
BUNDLE/labels.jsonl         {"id", "text", "train_count"} per label, in row order
BUNDLE/embeddings.safetensors   label rows float32 (L, D): the truth, from which any index can be rebuilt
BUNDLE/index/               what an index cannot rebuild cheaply; may be empty
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dexml import __version__
from dexml import manifest as manifest_of
from dexml.errors import InputError
from dexml.model import DualEncoder
from dexml.types import Int64Array, LabelTable


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle: `manifest` as written, `labels` and `train_counts` int64 (L), `embeddings` float32 (L, D)."""

    root: Path
    manifest: dict[str, Any]
    labels: LabelTable
    train_counts: Int64Array
    embeddings: Tensor

    @property
    def name(self) -> str:
        """What a client sees as the model: the run's name and the first digits of the manifest's checksum."""
        digest = hashlib.sha256(json.dumps(self.manifest["files"], sort_keys=True).encode()).hexdigest()
        return f"{self.manifest['name']}@sha256:{digest[:12]}"

    @property
    def index_folder(self) -> Path:
        """Where an index keeps its file."""
        return self.root / "index"

    def model(self) -> DualEncoder:
        """Return the dual encoder."""
        return DualEncoder.load(self.root / "encoder")

    @staticmethod
    def open(path: Path) -> Bundle:
        """Return the bundle at `path`, or in `path`/bundle for a training run, every checksum verified.

        Raises InputError that names the file when one is missing, extra, or has a changed byte.
        """
        root, manifest = manifest_of.verify(path)
        ids, texts, counts = [], [], []
        with (root / "labels.jsonl").open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                label = json.loads(line)
                ids.append(label["id"])
                texts.append(label["text"])
                counts.append(label["train_count"])
        labels = LabelTable(tuple(ids), tuple(texts))
        try:
            embeddings = load_file(root / "embeddings.safetensors")["embeddings"]
        except (SafetensorError, KeyError) as error:
            raise InputError(f"{root / 'embeddings.safetensors'}: {error}") from None
        if embeddings.shape != (len(labels), manifest["dimension"]):
            raise InputError(
                f"{root / 'embeddings.safetensors'}: shape {tuple(embeddings.shape)}, but the manifest says "
                f"({len(labels)}, {manifest['dimension']})"
            )
        return Bundle(root, manifest, labels, np.asarray(counts, dtype=np.int64), embeddings)


def publish(
    root: Path,
    model: DualEncoder,
    labels: LabelTable,
    train_counts: Int64Array,
    embeddings: Tensor,
    facts: dict[str, Any],
    save_index: Callable[[Path], None],
) -> None:
    """Write a bundle beside `root` and put it there in one rename; an older bundle stays until the new one is complete.

    `facts` go into the manifest (index, reranker, temperature, data, training, …); `save_index` fills the index folder.
    """
    scratch = root.with_name(f"{root.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "index").mkdir(parents=True)
    model.save(scratch / "encoder")
    with (scratch / "labels.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
        for number, (label, text) in enumerate(zip(labels.ids, labels.texts, strict=True)):
            entry = {"id": label, "text": text, "train_count": int(train_counts[number])}
            lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
    save_file({"embeddings": embeddings.contiguous()}, scratch / "embeddings.safetensors")
    save_index(scratch / "index")
    files = {}
    for file in sorted(path for path in scratch.rglob("*") if path.is_file()):
        _flush(file)
        files[file.relative_to(scratch).as_posix()] = {"size": file.stat().st_size, "sha256": manifest_of.sha256(file)}
    manifest = {
        "schema": manifest_of.SCHEMA,
        "dexml": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "labels": len(labels),
        "dimension": model.dimension,
        **facts,
        "files": files,
    }
    (scratch / manifest_of.FILE).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    _flush(scratch / manifest_of.FILE)
    _flush(scratch)
    if root.exists():
        old = root.with_name(f"{root.name}.{os.getpid()}.old")
        os.rename(root, old)
        os.rename(scratch, root)
        shutil.rmtree(old)
    else:
        os.rename(scratch, root)
    _flush(root.parent)


def _flush(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
