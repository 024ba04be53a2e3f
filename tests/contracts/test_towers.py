"""Every row of TOWERS: unit rows on both sides, a gradient for every parameter, and nothing random when not training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dexml.encoders import Encoder
from dexml.towers import TOWERS, Tower
from dexml.types import Bag, Features

WIDTH = 24


class BothKinds(Encoder):
    """Random dense and sparse features, so that any tower finds what it reads."""

    max_tokens = 100
    gives = frozenset({"bag", "dense"})

    def fit(self, texts: Sequence[str]) -> None: ...

    def encode(self, texts: Sequence[str]) -> Features:
        generator = torch.Generator().manual_seed(len(texts))
        features = torch.randint(WIDTH, (4 * len(texts),), generator=generator)
        bag = Bag(4 * torch.arange(len(texts) + 1), features, torch.full((len(features),), 0.5))
        dense = torch.nn.functional.normalize(torch.randn(len(texts), WIDTH, generator=generator), dim=1)
        return Features(dense, bag)

    def width(self) -> int:
        return WIDTH

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


@pytest.fixture(params=list(TOWERS))
def tower(request: pytest.FixtureRequest) -> Tower:
    torch.manual_seed(0)
    built = TOWERS.build(request.param, {}, BothKinds())
    built.start_from(BothKinds())
    built.free_vectors(7)
    return built


def test_rows_have_length_one(tower: Tower):
    queries, labels = tower(BothKinds().encode(["x"] * 5), BothKinds().encode(["y"] * 7))
    assert queries.shape == (5, tower.dimension) and labels.shape == (7, tower.dimension)
    assert torch.linalg.norm(torch.cat([queries, labels]), dim=1).tolist() == pytest.approx([1] * 12, abs=1e-5)


def test_forward_is_both_sides_when_nothing_is_dropped(tower: Tower):
    tower.eval()
    assert tower.free is not None
    torch.nn.init.normal_(tower.free, std=0.1)
    queries, labels = tower(BothKinds().encode(["x"] * 5), BothKinds().encode(["y"] * 7))
    assert torch.allclose(queries, tower.queries(BothKinds().encode(["x"] * 5)), atol=1e-6)
    assert torch.allclose(labels, tower.labels(BothKinds().encode(["y"] * 7), trained=True), atol=1e-6)
    assert not torch.allclose(labels, tower.labels(BothKinds().encode(["y"] * 7), trained=False), atol=1e-3)


def test_every_parameter_has_a_gradient_and_a_rate(tower: Tower):
    queries, labels = tower(BothKinds().encode(["x"] * 5), BothKinds().encode(["y"] * 7))
    (queries @ labels.T).pow(2).sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        assert tower.rate(name) > 0


def test_dropout_acts_on_queries_in_training_only(tower: Tower):
    features = BothKinds().encode(["x"] * 5)
    tower.eval()
    assert torch.equal(tower.queries(features), tower.queries(features))
    tower.train()
    assert torch.equal(tower.labels(features.take(torch.arange(5)), trained=False), tower.labels(features, trained=False))


def test_state_reads_back(tower: Tower):
    name = next(name for name in TOWERS if TOWERS[name] is type(tower))
    again = TOWERS.build(name, {}, BothKinds())
    again.free_vectors(7)
    again.load_state_dict(tower.state_dict())
    features = BothKinds().encode(["x"] * 5)
    assert torch.equal(again.eval().queries(features), tower.eval().queries(features))
