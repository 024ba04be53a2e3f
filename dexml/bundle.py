"""The artefact folder: the only thing training and serving share. Published whole or not at all, checked when opened.

BUNDLE/manifest.json        schema, sizes, names, the SHA-256 of every other file, and its own
BUNDLE/encoder/             the dual encoder; sentence-transformers opens it too
BUNDLE/labels.jsonl         {"id", "text", "train_count"} per label, in row order
BUNDLE/embeddings.safetensors   label rows float32 (L, D): the truth, from which any index can be rebuilt
BUNDLE/index/               what an index cannot rebuild cheaply; may be empty
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from dexml.manifest import Entry, Manifest
from dexml.model import DualEncoder
from dexml.types import Int64Array, LabelTable


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle: its `manifest`, `labels` and `train_counts` int64 (L), `embeddings` float32 (L, D)."""

    root: Path
    manifest: Manifest
    labels: LabelTable
    train_counts: Int64Array
    embeddings: Tensor

    @property
    def name(self) -> str:
        """What a client sees as the model: the run's name and the first digits of the manifest's checksum."""
        return f"{self.manifest.name}@sha256:{self.manifest.sha256[:12]}"

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
        if embeddings.shape != (len(labels), manifest.dimension) or len(labels) != manifest.labels:
            raise InputError(
                f"{root}: {len(labels)} labels and embeddings of shape {tuple(embeddings.shape)}, but the manifest says "
                f"({manifest.labels}, {manifest.dimension})"
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
    """Write a bundle beside `root` and rename it there; an older bundle stays until the new one is complete.

    `facts` go into the manifest (index, rerank, temperature, data, training, …); `save_index` fills the index folder. Raises
    InputError when the disk is full or cannot be written; `root` is then as it was.
    """
    with _published(root) as scratch:
        (scratch / "index").mkdir(parents=True)
        _fill(scratch, model, labels, train_counts, embeddings, save_index)
        manifest = Manifest(
            dexml=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            labels=len(labels),
            dimension=model.dimension,
            files=_sealed(scratch),
            **facts,
        )
        manifest.sealed().write(scratch / manifest_of.FILE)


def extend(path: Path, add: Callable[[Path], None]) -> Bundle:
    """Publish the bundle at `path` anew, in its place, with what `add` writes into the folder it is given; return it opened.

    Files are linked, not copied: `add` must not write into one that is there, but remove it and write another. Raises
    InputError as `open` does, and when the disk is full or cannot be written; the bundle is then as it was.
    """
    root, manifest = manifest_of.verify(path.resolve())
    with _published(root) as scratch:
        shutil.copytree(root, scratch, copy_function=_link, ignore=shutil.ignore_patterns(".*"))  # what desktops left there
        (scratch / manifest_of.FILE).unlink()
        add(scratch)
        manifest.model_copy(update={"files": _sealed(scratch)}).sealed().write(scratch / manifest_of.FILE)
    return Bundle.open(root)


@contextmanager
def _published(root: Path) -> Iterator[Path]:
    """Give the name of a folder to be made and filled beside `root`; then flush it and rename it there."""
    scratch, old = root.with_name(f"{root.name}.tmp"), root.with_name(f"{root.name}.old")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        yield scratch
        for path in (scratch / manifest_of.FILE, *(folder for folder in scratch.rglob("*") if folder.is_dir()), scratch):
            manifest_of.flush(path)
        if root.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(root, old)  # a crash from here to the next line is mended by `manifest.verify`, which looks for .old
        os.rename(scratch, root)
        manifest_of.flush(root.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise InputError(f"bundle: {root} cannot be written: {error.strerror or error}") from None
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _link(source: str, target: str) -> None:
    """Link a file, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _fill(
    folder: Path,
    model: DualEncoder,
    labels: LabelTable,
    train_counts: Int64Array,
    embeddings: Tensor,
    save_index: Callable[[Path], None],
) -> None:
    model.save(folder / "encoder")
    with (folder / "labels.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
        for number, (label, text) in enumerate(zip(labels.ids, labels.texts, strict=True)):
            entry = {"id": label, "text": text, "train_count": int(train_counts[number])}
            lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
    try:
        save_file({"embeddings": embeddings.contiguous()}, folder / "embeddings.safetensors")
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from None
    save_index(folder / "index")


def _sealed(folder: Path) -> dict[str, Entry]:
    """Flush every file to the disk and return its size and checksum by relative name."""
    entries = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        manifest_of.flush(file)
        entries[file.relative_to(folder).as_posix()] = Entry(size=file.stat().st_size, sha256=manifest_of.sha256(file))
    return entries
