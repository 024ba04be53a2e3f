"""A version's memory: training queries as unit rows, with the labels that each has and, where they may be shown, their texts.

VERSION/memory/queries.safetensors     "rows" float32 (N, D), as the exported tower makes them
VERSION/memory/positives.safetensors   "indptr" int64 (N+1), "indices" int32 (nnz): label numbers of this version's table
VERSION/memory/texts.jsonl             a JSON string per row; only where texts were asked for

Rows and texts are as they were trained on and are linked from version to version; a compaction renumbers the labels alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dexml.errors import InputError
from dexml.manifest import MemoryFacts
from dexml.types import Int64Array, Positives

FOLDER = "memory"
QUERIES = "queries.safetensors"
POSITIVES = "positives.safetensors"
TEXTS = "texts.jsonl"
MOST_LABELS = 2**31 - 1  # that int32 numbers


@dataclass(frozen=True, eq=False)
class Memory:
    """N training queries: `rows` float32 (N, D), unit; their labels `positives` (N, L); their `texts` (N), where kept."""

    rows: Tensor
    positives: Positives
    texts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        counts = {len(self.rows), len(self.positives), len(self.rows if self.texts is None else self.texts)}
        if len(counts) != 1:
            raise ValueError(f"memory: rows, labels and texts must be as many, got {sorted(counts)}")

    def __len__(self) -> int:
        return len(self.rows)

    def renumbered(self, rows: Int64Array) -> Memory:
        """Return the memory over the labels `rows` (L', ascending), which are numbered from 0 on; the others are in no row.

        A query all of whose labels are gone stays, so that what is nearest stays nearest; it speaks for nothing.
        """
        numbers = np.full(self.positives.num_labels, -1, dtype=np.int64)
        kept = rows[rows < len(numbers)]
        numbers[kept] = np.arange(len(kept))
        indices = numbers[self.positives.indices]
        before = np.concatenate([[0], np.cumsum(indices >= 0)])
        positives = Positives(before[self.positives.indptr].astype(np.int64), indices[indices >= 0], len(rows))
        return replace(self, positives=positives)

    def write(self, folder: Path) -> None:
        """Write all files into the version's `folder`. Raises OSError when the disk is full."""
        room = folder / FOLDER
        room.mkdir()
        _save({"rows": self.rows.float().contiguous()}, room / QUERIES)
        self.write_positives(folder)
        if self.texts is not None:
            with (room / TEXTS).open("w", encoding="utf-8", newline="\n") as lines:
                lines.writelines(json.dumps(text, ensure_ascii=False) + "\n" for text in self.texts)

    def write_positives(self, folder: Path) -> None:
        """Write the labels of the rows alone, beside rows and texts that are there."""
        assert self.positives.num_labels <= MOST_LABELS
        indices = torch.from_numpy(self.positives.indices.astype(np.int32))
        _save({"indptr": torch.from_numpy(self.positives.indptr), "indices": indices}, folder / FOLDER / POSITIVES)

    @staticmethod
    def read(folder: Path, facts: MemoryFacts, labels: int, dimension: int) -> Memory:
        """Return the memory of the version in `folder`, as its manifest describes it. Raises InputError that names the file."""
        room = folder / FOLDER
        rows = _load(room / QUERIES, "rows")[0]
        if rows.shape != (facts.queries, dimension) or rows.dtype != torch.float32:
            raise InputError(
                f"{room / QUERIES}: rows of shape {tuple(rows.shape)} in {rows.dtype}, but the manifest says "
                f"({facts.queries}, {dimension}) in float32"
            )
        indptr, indices = _load(room / POSITIVES, "indptr", "indices")
        try:
            positives = Positives(indptr.numpy(), indices.numpy().astype(np.int64), labels)
            return Memory(rows, positives, _texts(room / TEXTS) if facts.texts else None)
        except (TypeError, ValueError) as error:
            raise InputError(f"{room / POSITIVES}: {error}") from None


def chosen(rows: int, queries: int, seed: int) -> Int64Array:
    """Return which of N `rows` are kept, ascending: all, or `queries` of them drawn without replacement."""
    if queries >= rows:
        return np.arange(rows, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(rows, queries, replace=False)).astype(np.int64)


def _texts(path: Path) -> tuple[str, ...]:
    try:
        read: Sequence[object] = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: damaged ({error})") from None
    if not all(isinstance(text, str) for text in read):
        raise InputError(f"{path}: a JSON string is needed in each line")
    return tuple(map(str, read))


def _load(path: Path, *names: str) -> list[Tensor]:
    try:
        found = load_file(path)
        return [found[name] for name in names]
    except FileNotFoundError:
        raise InputError(f"bundle: {path} is missing") from None
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{path}: damaged ({error})") from None


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from None
