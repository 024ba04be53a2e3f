"""The audit of label collisions, block by block, against the whole matrix."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dexml.__main__ import command
from index import collisions as module
from index.collisions import collisions


def test_blocks_find_what_the_whole_matrix_holds(monkeypatch):
    made = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(50, 6, generator=made), dim=1)
    rows[[7, 21, 40]] = rows[[3, 3, 3]]  # four of one
    rows[30] = -rows[31]
    whole = (rows @ rows.T).numpy()
    monkeypatch.setattr(module, "BLOCK", 7)
    done: list[int] = []
    found = collisions(rows, pairs=12, report=done.append)
    np.fill_diagonal(whole, -np.inf)
    assert np.allclose(found.nearest, whole.max(axis=1), atol=1e-6)
    assert found.most == pytest.approx(1, abs=1e-6) and found.opposed == pytest.approx(-1, abs=1e-6)
    upper = np.sort(whole[np.triu_indices(50, 1)])[::-1][:12]
    assert np.allclose([cosine for _, _, cosine in found.pairs], upper, atol=1e-6)
    assert all(i < j and whole[i, j] == pytest.approx(cosine, abs=1e-6) for i, j, cosine in found.pairs)
    assert {pair[:2] for pair in found.pairs[:6]} == {(3, 7), (3, 21), (3, 40), (7, 21), (7, 40), (21, 40)}
    assert found.figures()["labels_that_collide"] == 4 and done[-1] == 50
    assert found.ratio == pytest.approx(1 / np.sqrt(44 / (6 * 49)), abs=1e-5)


def test_one_label_and_none():
    assert collisions(torch.zeros(0, 4)).figures()["max_abs_cosine"] == 0
    alone = collisions(torch.eye(1, 4))
    assert alone.pairs == () and alone.ratio is None and alone.most == 0
    assert collisions(torch.eye(2, 4)).most == 0


def test_the_command_names_the_nearest_labels(tiny_bundle: Path):
    said = CliRunner().invoke(command, ["index", str(tiny_bundle), "--collisions"])
    assert said.exit_code == 0 and "10 labels in 32 dimensions" in said.output and "max |cos|" in said.output, said.output
    read = json.loads(CliRunner().invoke(command, ["index", str(tiny_bundle), "--collisions", "--json"]).stdout)
    assert len(read["pairs"]) == 20 and read["pairs"][0]["cosine"] <= read["max_abs_cosine"] + 1e-6
    assert {"sorting", "svd"} < {label for pair in read["pairs"] for label in pair["labels"]}
    assert CliRunner().invoke(command, ["index", str(tiny_bundle), "--json"]).exit_code == 2
