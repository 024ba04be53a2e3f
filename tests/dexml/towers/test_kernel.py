"""The kernel tower: unit rows whose product is the function, whatever the base; saved with its directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dexml.model import DualEncoder
from dexml.towers.kernel import KernelTower
from dexml.types import Bag, Features

TEXTS = ["sorting arrays", "sparse matrices and sorting", "a line by least squares", "fast transform"]
BASE = {"dimension": 16, "start": "random"}


def made(**options: object) -> DualEncoder:
    return DualEncoder.make(
        "bag", {"min_df": 1}, "kernel", {"base": "tokens", "base_options": BASE, "features": 256, **options}, TEXTS
    )


@pytest.mark.parametrize("function", ["relu", "cos", "sin"])
def test_products_of_rows_are_about_the_function_of_the_bases_cosines(function: str):
    model = made(function=function, features=4096)
    tower = model.tower.eval()
    assert isinstance(tower, KernelTower)
    features = model.encoder.encode(TEXTS)
    cosines = tower.base.queries(features) @ tower.base.labels(features, trained=False).T
    scores = tower.queries(features) @ tower.labels(features, trained=False).T
    assert torch.equal(scores.argmax(dim=1), torch.arange(4)), "a text is nearest to itself"
    if function == "relu":
        angle = cosines.clamp(-1, 1).arccos()
        assert torch.allclose(scores, (angle.sin() + (torch.pi - angle) * angle.cos()) / torch.pi, atol=0.03)
    empty = torch.zeros(0, dtype=torch.int64)
    assert not tower.queries(Features(None, Bag(torch.zeros(2, dtype=torch.int64), empty, torch.zeros(0)))).any(), (
        "no word known"
    )


def test_base_and_directions_are_saved_and_another_seed_is_another_model(tmp_path: Path):
    model = made(seed=4)
    model.save(tmp_path)
    again = DualEncoder.load(tmp_path)
    assert torch.equal(again.embed_queries(TEXTS)[0], model.embed_queries(TEXTS)[0])
    assert again.tower_options["seed"] == 4
    other = made(seed=5)
    other.tower.get_submodule("base").load_state_dict(model.tower.get_submodule("base").state_dict())
    assert not torch.allclose(other.embed_queries(TEXTS)[0], model.embed_queries(TEXTS)[0], atol=1e-2)
    assert model.tower.adopt(again.tower, torch.eye(model.dimension))
    assert not model.tower.adopt(other.tower, torch.eye(model.dimension)), "its rows mean something else"


def test_few_bits_leave_base_and_directions_as_they_are(tmp_path: Path):
    model = made()
    model.tower.bits = 4
    model.save(tmp_path)
    assert torch.equal(DualEncoder.load(tmp_path).embed_queries(TEXTS)[0], model.embed_queries(TEXTS)[0])
