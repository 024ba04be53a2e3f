"""A tower's kernel is the product of its whole gradients, whatever it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dexml.analysis import tangent
from dexml.analysis.tangent import tower_kernel, trained
from dexml.encoders import Encoder
from dexml.errors import InputError
from dexml.towers import TOWERS
from dexml.types import Bag, Features

OPTIONS = {
    "tokens": {"dimension": 6},
    "summed": {},
    "compact": {"dimension": 6},
    "mixture": {"base": "summed", "experts": 3},
}


class Given(Encoder):
    """Features of 30 and 6 numbers, made here."""

    gives = frozenset({"bag", "dense"})
    max_tokens = 9

    def fit(self, texts): ...
    def encode(self, texts):
        raise NotImplementedError

    def width(self):
        return 30

    def dense_width(self):
        return 6

    def save(self, folder): ...
    def load(self, folder): ...


@pytest.fixture
def features() -> Features:
    torch.manual_seed(0)
    lengths = torch.tensor([4, 0, 7, 5, 1])  # one text without a known feature
    rows = torch.cat([torch.randperm(30)[:length] for length in lengths.tolist()])
    bag = Bag(torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]), rows, torch.rand(len(rows)) + 0.1)
    return Features(torch.nn.functional.normalize(torch.randn(5, 6), dim=1), bag)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_kernel_is_that_of_whole_gradients(name: str, features: Features):
    tower = TOWERS.build(name, OPTIONS[name], Given()).eval()
    tower.free_vectors(3)
    with torch.no_grad():
        for value in tower.parameters():
            value.copy_(0.4 * torch.randn_like(value))
    directions = torch.randn(2, 6)
    wanted = torch.zeros(5, 5)
    for direction in directions:
        rows = []
        for score in tower.queries(features) @ direction:
            gradients = torch.autograd.grad(score, list(trained(tower).values()), retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        wanted += torch.stack(rows) @ torch.stack(rows).T / 2
    seen = []
    found = tower_kernel(tower, features, directions, lambda done, of: seen.append((done, of)))
    assert found == pytest.approx(wanted.numpy(), abs=1e-5)
    assert np.linalg.eigvalsh(found)[0] > -1e-6
    assert seen == [(0, 10), (5, 10)]


def test_what_cannot_be_had_is_refused(features: Features, monkeypatch: pytest.MonkeyPatch):
    tower = TOWERS.build("summed", {}, Given())
    with pytest.raises(InputError, match="no trained parameters"):
        tower_kernel(tower.requires_grad_(False), features, torch.ones(1, 6))
    monkeypatch.setattr(tangent, "MOST_BYTES", 100)
    with pytest.raises(InputError, match="fewer rows"):
        tower_kernel(tower.requires_grad_(True), features, torch.ones(1, 6))
