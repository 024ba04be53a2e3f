"""The artefact folder: the only thing training and serving share. Versions published whole or not at all, checked when opened.

BUNDLE/CURRENT, BUNDLE/log/     which version counts, and the labels added and deleted since (`dexml.versions`)
BUNDLE/v000001/manifest.json    schema, sizes, names, the SHA-256 of every other file by block, and its own
BUNDLE/v000001/encoder/         the dual encoder; sentence-transformers opens it too
BUNDLE/v000001/labels.jsonl     {"id", "text", "train_count"} per label, in row order
BUNDLE/v000001/embeddings.safetensors   label rows float32 (L, D): the truth, from which any index can be rebuilt
BUNDLE/v000001/memory/          training queries, where they are kept (`dexml.memory`)
BUNDLE/v000001/calibration.json what scores mean as probabilities, where it was fitted (`dexml.calibration`)
BUNDLE/v000001/index/           what an index cannot rebuild cheaply; may be empty
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dexml import __version__, versions
from dexml import manifest as manifest_of
from dexml.calibration import Calibration
from dexml.errors import InputError, StorageError
from dexml.label_log import LabelLog
from dexml.manifest import Manifest, Parent
from dexml.memory import Memory
from dexml.model import DualEncoder
from dexml.types import Int64Array, LabelTable

LABELS = "labels.jsonl"
EMBEDDINGS = "embeddings.safetensors"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A version of a bundle, opened: its folder `root`, `manifest`, `labels` and `train_counts` int64 (L).

    `embeddings` are float32 (L, D), mapped from the file, as are the rows of its `memory`, where it has one.
    """

    root: Path
    manifest: Manifest
    labels: LabelTable
    train_counts: Int64Array
    embeddings: Tensor
    memory: Memory | None = None
    calibration: Calibration | None = None

    @property
    def name(self) -> str:
        """What a client sees as the model: the run's name and the first digits of a checksum of the encoder's files.

        Labels may come and go: the model stays.
        """
        return f"{self.manifest.name}@sha256:{self.encoder[:12]}"

    @property
    def encoder(self) -> str:
        """A checksum of the encoder's files: two versions with the same one encode alike."""
        files = {name: entry.sha256 for name, entry in self.manifest.files.items() if name.startswith("encoder/")}
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    @property
    def index_folder(self) -> Path:
        """Where an index keeps its file."""
        return self.root / "index"

    def model(self) -> DualEncoder:
        """Return the dual encoder."""
        return DualEncoder.load(self.root / "encoder")

    @staticmethod
    def open(path: Path) -> Bundle:
        """Return the current version of the bundle at `path`, or in `path`/bundle for a training run, every checksum verified.

        Raises InputError that names the file, and its block, when one is missing, extra, or has a changed byte.
        """
        return Bundle.read(*versions.current(versions.root_of(path)))

    @staticmethod
    def read(root: Path, manifest: Manifest) -> Bundle:
        """Return the version in the folder `root`, every checksum verified."""
        manifest_of.verify(root, manifest)
        try:
            rows = json.loads(f"[{(root / LABELS).read_text(encoding='utf-8').strip().replace(chr(10), ',')}]")
            labels = LabelTable(tuple(row["id"] for row in rows), tuple(row["text"] for row in rows))
            counts = np.fromiter((row["train_count"] for row in rows), dtype=np.int64, count=len(rows))
            embeddings = load_file(root / EMBEDDINGS)["embeddings"]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"bundle: {root}: what its files say makes no sense ({error})") from None
        if embeddings.shape != (len(labels), manifest.dimension) or len(labels) != manifest.labels:
            raise InputError(
                f"{root}: {len(labels)} labels and embeddings of shape {tuple(embeddings.shape)}, but the manifest says "
                f"({manifest.labels}, {manifest.dimension})"
            )
        kept = manifest.memory
        memory = None if kept is None else Memory.read(root, kept, len(labels), manifest.dimension)
        return Bundle(root, manifest, labels, counts, embeddings, memory, Calibration.read(root))


def publish(
    root: Path,
    model: DualEncoder,
    labels: LabelTable,
    train_counts: Int64Array,
    embeddings: Tensor,
    facts: dict[str, Any],
    save_index: Callable[[Path], None],
    memory: Memory | None = None,
    add: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Publish a version of the bundle `root`, new or there already, and return its folder.

    `facts` go into the manifest (index, rerank, temperature, data, training, …), with "memory" where one is given;
    `save_index` fills the index folder, and `add` writes what else belongs to the version. Raises InputError when another
    process writes the bundle, when the disk is full or cannot be written; `root` is then as it was.
    """

    def fill(folder: Path) -> Manifest:
        model.save(folder / "encoder")
        write_labels(folder, labels.ids, labels.texts, train_counts, embeddings)
        (folder / "index").mkdir()
        save_index(folder / "index")
        if memory is not None:
            memory.write(folder)
        add(folder)
        return Manifest(dexml=__version__, created=now(), labels=len(labels), dimension=model.dimension, **facts)

    with told(root), versions.locked(root):
        return versions.publish(root, fill)


def extend(path: Path, add: Callable[[Path], None], facts: Mapping[str, Any] | None = None) -> Bundle:
    """Publish the current version of a bundle anew, with what `add` writes into the folder it is given; return it opened.

    Files are linked, not copied: `add` must not write into one that is there, but remove it and write another. `facts` are
    what changes in the manifest. Raises InputError as `open` and `publish` do, and where labels were added or deleted since:
    the log is another version's then.
    """
    root = versions.root_of(path)
    with told(root), versions.locked(root):
        old, manifest = versions.current(root)
        manifest_of.verify(old, manifest)
        if LabelLog(versions.log_of(old), manifest.dimension, manifest.sha256).records:
            raise InputError(f"bundle: labels of {root} have been added or deleted; `dexml index {root} --compact` first")

        def fill(folder: Path) -> Manifest:
            copy(old, folder)
            add(folder)
            parent = Parent(version=old.name, records=0)
            return manifest.model_copy(update={"created": now(), "parent": parent, **(facts or {})})

        new = versions.publish(root, fill)
    return Bundle.read(new, manifest_of.read(new))


def copy(old: Path, folder: Path, leave: Sequence[str] = ()) -> None:
    """Link all files of a version but its manifest, what desktops left, and `leave`, into the empty `folder`."""
    ignored = shutil.ignore_patterns(".*", manifest_of.FILE, *leave)
    shutil.copytree(old, folder, copy_function=versions.link, ignore=ignored, dirs_exist_ok=True)


def write_labels(folder: Path, ids: Sequence[str], texts: Sequence[str], train_counts: Int64Array, embeddings: Tensor) -> None:
    """Write labels.jsonl and embeddings.safetensors. Raises OSError when the disk is full."""
    with (folder / LABELS).open("w", encoding="utf-8", newline="\n") as lines:
        for label, text, count in zip(ids, texts, train_counts.tolist(), strict=True):
            lines.write(json.dumps({"id": label, "text": text, "train_count": count}, ensure_ascii=False) + "\n")
    try:
        save_file({"embeddings": embeddings.contiguous()}, folder / EMBEDDINGS)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from None


@contextmanager
def told(root: Path) -> Iterator[None]:
    """Turn what a disk refuses into one line."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"bundle: {root} cannot be written: {error.strerror or error}") from None


def now() -> str:
    """Return the time of a publication, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
