"""Towers whose parts are trained by losses of their own, and what towers have to say once they are trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data import open_format
from dexml.config import load
from dexml.towers.noprop import NoPropTower
from index.retriever import Retriever
from training import checkpoint, record
from training.config import Config, settle
from training.local import LocalFeatures
from training.run import Run

BASE = ["tower.base=tokens", "tower.base_options={dimension=32, start='random'}"]
NOPROP = ["tower={name='noprop'}", *BASE, "tower.blocks=3", "tower.hidden=16"]
MIXTURE = ["tower={name='mixture'}", *BASE, "tower.experts=3"]


def options(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def made(config: Path, *settings: str) -> Run:
    read = load(Config, config, settings)
    files = open_format(read.data.path)
    split = files.read("train")
    return Run(settle(read, len(split))[0], files.labels(), split, None)


def test_the_base_learns_what_it_would_alone(tiny_config: Path):
    rows = np.array([3, 0, 40])
    run = made(tiny_config, *NOPROP)
    tower = run.model.tower
    assert (
        isinstance(run.method, LocalFeatures) and isinstance(tower, NoPropTower) and isinstance(tower.base.table, torch.Tensor)
    )
    alone = made(tiny_config, "tower={name='tokens', dimension=32, start='random'}")
    with torch.no_grad():
        alone.model.tower.get_parameter("table").copy_(tower.base.table)
    for one in (run, alone):
        torch.manual_seed(1)
        one.method.backward(rows)
    assert torch.allclose(tower.base.table.grad, alone.model.tower.get_parameter("table").grad, atol=1e-7)
    assert torch.allclose(tower.free.grad, alone.model.tower.free.grad, atol=1e-7)
    assert all(parameter.grad.abs().amax(dim=(1, 2)).min() > 0 for parameter in tower.blocks.parameters())


def test_rows_without_labels_are_left_out(tiny_config: Path):
    from dexml.types import Positives

    tower = made(tiny_config, *NOPROP).model.tower.eval()
    rows, labels = (torch.nn.functional.normalize(torch.randn(n, 32), dim=1) for n in (3, 10))
    torch.manual_seed(0)
    two = tower.local_losses(rows, labels, Positives.from_rows([[0, 4], [], [7]], 10))
    torch.manual_seed(0)
    assert torch.equal(two, tower.local_losses(rows[[0, 2]], labels, Positives.from_rows([[0, 4], [7]], 10)))


def test_an_interrupted_run_goes_on_bit_by_bit(tiny_config: Path, tmp_path: Path):
    settings = [*NOPROP, "training.epochs=2"]
    whole = made(tiny_config, *settings, f"out={tmp_path / 'whole'}")
    whole.go(lambda now: None)
    first, left = made(tiny_config, *settings, f"out={tmp_path / 'cut'}"), iter([False, False, True])
    assert not first.go(lambda now: None, lambda: next(left))
    state = checkpoint.newest(tmp_path / "cut")
    again = made(tiny_config, *settings, f"out={tmp_path / 'cut'}")
    assert state is not None and again.knows(state)
    again.resume(state)
    again.go(lambda now: None)
    ended = dict(again.model.tower.state_dict())
    assert all(torch.equal(value, ended[name]) for name, value in whole.model.tower.state_dict().items())


def test_noprop_is_trained_and_served(run, tiny_config: Path, tmp_path: Path):
    settings = [*NOPROP, "validation.fraction=0.2", "validation.refit=false", f"out={tmp_path}"]
    said = run("train", tiny_config, *options(settings))
    assert "3 blocks trained each alone" in said
    assert "noprop, on the watched rows: the base alone P@1" in said and "block 1 alone" in said and "all 3 blocks" in said
    facts = record.read(tmp_path)
    assert facts is not None and "block 1 alone" in facts["phases"]["1"]["tower"]
    model = Retriever.open(tmp_path).model
    texts = ["sorting arrays of numbers", "a matrix", "zzz"]
    rows = model.embed_queries(texts)[0]
    assert torch.allclose(rows[1:2], model.embed_queries(texts[1:2])[0], atol=1e-6)
    assert torch.equal(rows, model.embed_queries(texts)[0]) and not rows[2].any()


def test_what_cannot_train_so_is_told(run, tiny_config: Path, tiny_bundle: Path, tmp_path: Path):
    path = tmp_path / "student.toml"
    data = load(Config, tiny_config).data.path
    path.write_text(f"out = '{tmp_path}'\n[data]\npath = '{data}'\n[distill]\nteacher = '{tiny_bundle}'\n", encoding="utf-8")
    said = run("distill", path, *options(["tower.name=noprop", "tower.base=tokens"]), fails=True)
    assert "tower.name: 'noprop' is trained by losses of its own, and cannot be a student" in said


def test_a_mixture_is_trained_and_says_how_it_is(run, tiny_config: Path, tmp_path: Path):
    said = run("train", tiny_config, *options([*MIXTURE, f"out={tmp_path}"]))
    note = "mixture: 3 experts, all different, 2 of them for each query"
    assert f"note: {note}" in said
    assert json.loads(run("info", tmp_path))["tower"] == {"name": "mixture", "notes": [note]}
    assert f"{note}" in (tmp_path / "report.html").read_text(encoding="utf-8")
    rows = Retriever.open(tmp_path).model.embed_queries(["sorting arrays"])[0]
    assert torch.linalg.norm(rows[0]).item() == pytest.approx(1, abs=1e-5)
