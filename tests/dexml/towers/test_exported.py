"""Towers whose code asks for the number of rows: a graph of them takes any, and gives what the tower does."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from dexml.encoders import ENCODERS
from dexml.towers import TOWERS, Tower
from dexml.types import Bag, Features

TEXTS = ["sorting arrays", "a matrix", "the fast Fourier transform", "", "clustering of points"]


class Rows(nn.Module):
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, features: Tensor, weights: Tensor) -> Tensor:
        texts, width = features.shape
        return self.tower.queries(Features(bag=Bag(torch.arange(texts + 1) * width, features.flatten(), weights.flatten())))


@pytest.mark.parametrize("name", ["mixture", "noprop"])
def test_a_graph_takes_any_number_of_texts(name: str):
    encoder = ENCODERS.build("bag")
    encoder.fit(TEXTS * 2)
    tower = TOWERS.build(name, {"base": "tokens", "base_options": {"dimension": 16, "start": "random"}}, encoder)
    torch.manual_seed(0)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.3)
    graph = Rows(tower.eval())
    open_axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("features")}

    def given(texts: int, width: int) -> tuple[Tensor, Tensor]:
        return torch.randint(encoder.width(), (texts, width)), torch.rand(texts, width)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(graph, given(3, 4), dynamic_shapes=(open_axes, open_axes)).module()
    for texts, width in ((1, 2), (3, 4), (9, 7)):
        asked = given(texts, width)
        assert torch.allclose(exported(*asked), graph(*asked), atol=1e-5)
