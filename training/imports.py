"""A bundle of a model that is there already: no training, only labels encoded, or rows of someone else's making."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.jsonl import read_label_lines
from dexml import model as model_of
from dexml.bundle import publish
from dexml.errors import InputError
from dexml.model import DualEncoder
from dexml.types import Float32Array, LabelTable
from index import INDEXES, canary, default_index
from training import provenance
from training.export import examples

AT_ONCE = 1024  # texts encoded between two reports
ROWS = 1 << 14  # rows checked at a time
UNIT = 1e-6  # how far from 1 the length of a float32 unit row may be
PROPENSITY = (0.55, 1.5)


def open_model(name: str, revision: str | None, max_tokens: int) -> DualEncoder:
    """Return a model that is not trained further: dexml's own encoder folder, or any that sentence-transformers opens.

    `name` is a folder, "minilm", or a hub name with a `revision`. dexml's own folder says itself how many tokens it reads, and
    gives no label the free vector that a training gave it. Raises InputError when there is none.
    """
    if (Path(name) / model_of.FILE).is_file():
        return DualEncoder.load(Path(name))
    if name != "minilm" and not Path(name).is_dir() and revision is None:
        raise InputError(f"--model: {name!r} is no folder; a hub model needs --revision, so that it can be had again")
    options = {"model": name, "revision": revision, "max_tokens": max_tokens}
    return DualEncoder.make("transformer", options, "identity", {}, [])


def read_labels(path: Path) -> LabelTable:
    """Return the labels of a JSON Lines file of {"id", "text"}. Raises InputError that names line and field."""
    lines = list(read_label_lines(path))
    for line in lines:
        if line.embedding is not None:
            raise InputError(f"{line.where}, embedding: rows come in a file of their own (--embeddings rows.npy)")
    if not lines:
        raise InputError(f"{path}: the file holds no label")
    return LabelTable(tuple(line.id for line in lines), tuple(line.text or line.id for line in lines))


def encode(model: DualEncoder, texts: tuple[str, ...], report: Callable[[int], None]) -> Tensor:
    """Return unit rows float32 (L, D) of label texts; `report` gets the texts done."""
    rows = torch.empty(len(texts), model.dimension)
    for start in range(0, len(texts), AT_ONCE):
        part = texts[start : start + AT_ONCE]
        rows[start : start + len(part)] = model.embed_labels(part)
        report(start + len(part))
    return rows


def read_rows(path: Path, labels: LabelTable, dimension: int) -> Tensor:
    """Return the rows of a .npy file as unit rows float32 (L, D); those that are unit rows already, bit by bit.

    Raises InputError for a file that is missing, damaged, of pickled objects, of another shape, or of other numbers than
    floats; for a row that is all zeros, or holds a number that is not finite.
    """
    try:
        read = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: the file does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: cannot be read as a .npy file ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from None
    if not isinstance(read, np.ndarray):
        read.close()
        raise InputError(f"{path}: an archive; one array, as np.save writes it, is needed")
    if not np.issubdtype(read.dtype, np.floating):
        raise InputError(f"{path}: floating-point numbers are needed, got {read.dtype}")
    if read.shape != (len(labels), dimension):
        raise InputError(
            f"{path}: rows of shape {read.shape}, but {len(labels)} labels and a model of {dimension} dimensions "
            f"need ({len(labels)}, {dimension})"
        )
    rows = np.empty(read.shape, dtype=np.float32)
    for start in range(0, len(rows), ROWS):
        block = np.asarray(read[start : start + ROWS], dtype=np.float64)
        largest = np.abs(block).max(axis=1)
        for fault, what in ((~np.isfinite(largest), "holds a number that is not finite"), (largest == 0, "is all zeros")):
            if fault.any():
                number = start + int(fault.argmax())
                raise InputError(f"{path}: row {number} (from 0, label {labels.ids[number]!r}) {what}")
        rows[start : start + ROWS] = _unit(block, largest)
    return torch.from_numpy(rows)


def _unit(block: np.ndarray[Any, np.dtype[np.float64]], largest: np.ndarray[Any, np.dtype[np.float64]]) -> Float32Array:
    scaled = block / largest[:, None]  # squares of 1e200 would overflow
    lengths = np.linalg.norm(scaled, axis=1)
    unit = np.abs(lengths * largest - 1) <= UNIT
    made: Float32Array = np.where(unit[:, None], block, scaled / lengths[:, None]).astype(np.float32)
    return made


def import_bundle(
    out: Path,
    name: str,
    model: DualEncoder,
    labels: LabelTable,
    rows: Tensor,
    index: str,
    temperature: float,
    origin: dict[str, Any],
) -> dict[str, object]:
    """Publish a bundle in the new folder `out`; return what its index says of itself.

    The manifest says that nothing was trained: no steps, no training rows of any label, and `origin` in place of a config.
    """
    chosen = default_index() if index == "auto" else index
    built = INDEXES.build(chosen, {})
    built.build(rows)
    facts: dict[str, Any] = {
        "name": name,
        "temperature": temperature,
        "index": {"name": chosen},
        "rerank": {"name": "softmax"},
        "examples": examples(labels),
        # What `dexml evaluate` opens: the folder of the labels, where the splits stand beside them. PSP needs at least one row.
        "data": {"path": str(Path(origin["labels"]).parent), "format": "jsonl", "propensity": PROPENSITY, "train_rows": 1},
        "training": {
            "finished": True,
            "step": 0,
            "steps": 0,
            "fingerprint": "",
            "config": {"import": origin},
            **provenance.facts(),
        },
    }

    def add(folder: Path) -> None:
        canary.write(folder, model, facts["examples"], labels.ids, rows)

    publish(out, model, labels, np.zeros(len(labels), dtype=np.int64), rows, facts, built.save, add=add)
    return built.describe()
