"""A version's memory on disk: read back as it was, renumbered with the labels, and refused by name where it makes no sense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dexml.errors import InputError
from dexml.manifest import MemoryFacts
from dexml.memory import Memory
from dexml.types import Positives

FACTS = MemoryFacts(queries=3, texts=True, weight=0.3, temperature=0.05, neighbours=50)
TEXTS = ("a\nb\r\u2028c\x85", "", "名前 🎉")


def memory(texts: tuple[str, ...] | None = TEXTS) -> Memory:
    rows = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    return Memory(rows, Positives.from_rows([[0, 4], [2], [1, 2, 3]], 5), texts)


def test_what_is_written_is_read_back(tmp_path: Path):
    for number, texts in enumerate((TEXTS, None)):
        folder = tmp_path / str(number)
        folder.mkdir()
        memory(texts).write(folder)
        read = Memory.read(folder, FACTS.model_copy(update={"texts": texts is not None}), 5, 8)
        assert torch.equal(read.rows, memory().rows) and read.texts == texts
        assert read.positives.indices.tolist() == [0, 4, 2, 1, 2, 3] and read.positives.indptr.tolist() == [0, 2, 3, 6]
        assert (folder / "memory" / "texts.jsonl").exists() == (texts is not None)


def test_labels_are_numbered_anew_and_those_that_went_are_in_no_row():
    """Labels 1 and 2 went; two were added, whose rows come after the memory's five."""
    kept = memory().renumbered(np.array([0, 3, 4, 5, 6]))
    assert [kept.positives.row(row).tolist() for row in range(3)] == [[0, 2], [], [1]]
    assert kept.positives.num_labels == 5 and kept.texts == TEXTS and torch.equal(kept.rows, memory().rows)
    assert len(memory().renumbered(np.array([], dtype=np.int64)).positives.indices) == 0


def test_what_makes_no_sense_is_told_by_file(tmp_path: Path):
    memory().write(tmp_path)
    room = tmp_path / "memory"
    for facts, labels, said in (
        (FACTS.model_copy(update={"queries": 4}), 5, r"queries\.safetensors: rows of shape \(3, 8\).*\(4, 8\)"),
        (FACTS, 4, r"positives\.safetensors: positives: label numbers must lie in \[0, 4\), got 4"),
    ):
        with pytest.raises(InputError, match=said):
            Memory.read(tmp_path, facts, labels, 8)
    for content, said in (
        (b'"a"\n"b"\n', "as many"),
        (b'"a"\n1\n"b"\n', "texts.jsonl: a JSON string"),
        (b"\xff", "texts.jsonl: damaged"),
    ):
        (room / "texts.jsonl").write_bytes(content)
        with pytest.raises(InputError, match=said):
            Memory.read(tmp_path, FACTS, 5, 8)
    (room / "positives.safetensors").unlink()
    save_file({"indptr": torch.zeros(4, dtype=torch.int64)}, room / "positives.safetensors")
    with pytest.raises(InputError, match=r"positives\.safetensors: damaged"):
        Memory.read(tmp_path, FACTS, 5, 8)
    (room / "queries.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"queries\.safetensors: damaged"):
        Memory.read(tmp_path, FACTS, 5, 8)
    (room / "queries.safetensors").unlink()
    with pytest.raises(InputError, match=r"queries\.safetensors is missing"):
        Memory.read(tmp_path, FACTS, 5, 8)
