"""Folders that appear whole or not at all, and the label file in them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from dexml import manifest
from dexml.errors import InputError
from training.exporters.base import Batch, Source

LABELS = "labels.jsonl"
ABOUT = "about.json"
BATCH = 4096


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out`; it is flushed and takes that name when the block ends well, and is removed when not.

    Raises InputError when `out` is a file, or a folder that holds something, and when the disk is full or cannot be written.
    """
    refuse_existing(out)
    scratch = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}.tmp")
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for place, _, files in os.walk(scratch, topdown=False):
            for name in files:
                manifest.flush(Path(place) / name)
            manifest.flush(Path(place))
        os.rename(scratch, out)
        manifest.flush(scratch.parent)
    except (OSError, SafetensorError) as error:  # the second is how safetensors reports a full disk
        raise InputError(f"--out: {out} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def refuse_existing(out: Path) -> None:
    """Raise InputError unless `out` is a name that nothing has, or an empty folder."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"--out: {out} is there already, and is no folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out: the folder {out} is there already; give a new one")


def labels_written(folder: Path, source: Source) -> Iterator[Batch]:
    """Write FOLDER/labels.jsonl, {"id", "text"} per label in row order; yield the batches for what else is written."""
    with (folder / LABELS).open("w", encoding="utf-8", newline="\n") as lines:
        for batch in source.batches(BATCH):
            for label, text in zip(batch.ids, batch.texts, strict=True):
                lines.write(json.dumps({"id": label, "text": text}, ensure_ascii=False) + "\n")
            yield batch
