"""`dexml head`: a head behind a bundle is chosen on rows held out, published, asked, measured and changed as any bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dexml.bundle import Bundle
from dexml.towers.kernel import KernelTower
from dexml.towers.linear import LinearTower, as_unit_rows, with_one
from dexml.types import Positives
from training.heads import Base, fitted


@pytest.mark.parametrize(("name", "setting"), [("squared_hinge", "cost=3"), ("z_loss", "rate=2"), ("ridge", "penalty=0.2")])
def test_a_head_answers_as_any_bundle(run, tiny_bundle: Path, tmp_path: Path, name: str, setting: str):
    out = tmp_path / "head"
    said = run("head", tiny_bundle, out, "--loss", name, "--set", setting, "--fraction", "0.2")
    assert "12 held out" in said and "12 validation rows" in said and setting.replace("=", " ") in said
    opened, source = Bundle.open(out), Bundle.open(tiny_bundle)
    assert opened.manifest.dimension == source.manifest.dimension + 2
    assert torch.allclose(torch.linalg.vector_norm(opened.embeddings, dim=1), torch.ones(10), atol=1e-5)
    assert opened.manifest.training.config["head"]["name"] == name
    assert isinstance(opened.model().tower, LinearTower)
    assert json.loads(run("search", out, "singular value decomposition", "-k", "1", "--json"))[0]["id"] == "svd"
    assert json.loads(run("evaluate", out, "--json", tmp_path / "test.json") and (tmp_path / "test.json").read_text())
    assert opened.model().embed_queries(["zzz qqq"])[0].any().item() is False, "a text without a known word stays one"
    (tmp_path / "new.jsonl").write_text('{"id": "more", "text": "drawing random numbers"}\n')
    assert "1 added" in run("labels", "add", out, tmp_path / "new.jsonl")
    assert "more" in [found["id"] for found in json.loads(run("search", out, "drawing random numbers", "-k", "3", "--json"))]
    assert "is there already" in run("head", tiny_bundle, out, fails=True)


def test_kernel_features_stand_between_a_bundle_and_its_head(run, tiny_bundle: Path, tmp_path: Path):
    out = tmp_path / "head"
    said = run("head", tiny_bundle, out, "--loss", "ridge", "--features", "128", "--fraction", "0.2")
    assert "penalty 0.03" in said and "penalty 1" in said, "all are tried"
    opened = Bundle.open(out)
    assert opened.manifest.dimension == 128 + 2
    tower = opened.model().tower
    assert isinstance(tower, LinearTower) and isinstance(tower.base, KernelTower)
    assert json.loads(run("search", out, "singular value decomposition", "-k", "1", "--json"))[0]["id"] == "svd"
    assert "x>=1" in run("head", tiny_bundle, tmp_path / "none", "--features", "0", fails=True)


def test_what_cannot_be_fitted_is_told(run, tiny_bundle: Path, tmp_path: Path):
    assert "unknown head 'hinge'" in run("head", tiny_bundle, tmp_path / "a", "--loss", "hinge", fails=True)
    assert "costs" in run("head", tiny_bundle, tmp_path / "a", "--set", "costs=1", fails=True)
    assert "held out" in run("head", tiny_bundle, tmp_path / "a", "--fraction", "0", fails=True)


def test_the_scale_of_texts_is_read_off_rows_that_the_head_has_not_seen():
    """Of rows learned by heart, outputs are as large as they can be, and a label without a row would be scored like that."""
    made = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(40, 64, generator=made), dim=1)
    numbers = torch.arange(60) % 30

    def side() -> Base:
        rows = torch.nn.functional.normalize(texts[numbers] + 0.3 * torch.randn(60, 64, generator=made), dim=1)
        return Base(with_one(rows), texts, Positives.from_rows([[number] for number in numbers.tolist()], 40))

    train, held = side(), side()
    [(weights, seen)] = fitted(train, "ridge", {"penalty": 0.01})
    by_heart, fair = train.scale(weights, seen), held.scale(weights, seen)
    assert by_heart is not None and fair is not None and fair[0] < 0.8 * by_heart[0]
    every = train.of_all(weights, seen, fair)
    assert torch.equal(every[:30], weights)
    assert torch.allclose(every[30:, :-1], fair[0] * texts[30:]) and torch.allclose(every[30:, -1], torch.tensor(fair[1]))
    assert held.take(np.arange(0)).scale(weights, seen) is None


def test_unit_rows_keep_every_output():
    made = torch.Generator().manual_seed(0)
    inputs = torch.nn.functional.normalize(torch.randn(6, 4, generator=made), dim=1)
    weights = torch.randn(5, 5, generator=made)
    rows, most = as_unit_rows(weights)
    queries = torch.cat([with_one(inputs), torch.zeros(6, 1)], dim=1)
    outputs = (inputs @ weights[:, :4].T + weights[:, 4]) / 2**0.5
    assert torch.allclose(most * queries @ rows.T, outputs, atol=1e-5)
    assert torch.allclose(torch.linalg.vector_norm(rows, dim=1), torch.ones(5), atol=1e-6)
    assert most == pytest.approx(torch.linalg.vector_norm(weights, dim=1).max().item())
