"""Codes without text: how far apart they come, that they are the same again, and what a classifier makes of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from dexml.heads import equiangular
from dexml.heads.equiangular import code_book, largest, welch


def test_codes_come_near_welchs_bound_and_are_the_same_again(monkeypatch):
    codes = code_book(400, 100, seed=3)
    assert torch.linalg.vector_norm(codes, dim=1).tolist() == pytest.approx([1] * 400, abs=1e-6)
    assert welch(400, 100) == pytest.approx(0.0867, abs=1e-4)
    assert welch(400, 100) < largest(codes) <= 0.155, "random ones: 0.45"
    monkeypatch.setattr(equiangular, "SLICE_BYTES", 4 * 400 * 33)
    assert torch.allclose(code_book(400, 100, seed=3), codes, atol=1e-4)
    assert not torch.allclose(code_book(400, 100, seed=4), codes, atol=0.1)


def test_codes_that_fit_stand_at_right_angles():
    codes = code_book(12, 16)
    assert torch.allclose(codes @ codes.T, torch.eye(12), atol=1e-6) and welch(12, 16) == 0
    assert torch.equal(codes, code_book(12, 16))
    assert code_book(1, 4).shape == (1, 4) and code_book(0, 4).shape == (0, 4)


def test_a_new_label_is_one_more_vector():
    kept = code_book(200, 50)
    more = code_book(203, 50, kept=kept)
    assert torch.equal(more[:200], kept)
    random = torch.cat([kept, normalize(torch.randn(3, 50, generator=torch.Generator().manual_seed(1)), dim=1)])
    assert largest(more, first=200) < 0.25 < 0.4 < largest(random, first=200)
    assert torch.equal(code_book(200, 50, kept=kept), kept)


def test_a_classifier_of_fixed_codes_is_as_good_as_a_learned_one():
    """400 classes that are well apart, behind the same two layers; benchmarks/bench_heads.py has those that are not."""
    made = torch.Generator().manual_seed(0)
    centres = torch.randn(400, 64, generator=made)
    classes = torch.arange(400).repeat(15)
    inputs = centres[classes] + 0.6 * torch.randn(len(classes), 64, generator=made)
    test = torch.arange(len(classes)) >= 4000

    def accuracy(codes: torch.Tensor, *, learned: bool) -> float:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 100))
        rows = codes.clone().requires_grad_(learned)
        optimizer = torch.optim.Adam([*network.parameters(), *([rows] if learned else [])], lr=4e-3)
        for _ in range(10):
            for some in torch.randperm(4000).split(400):
                optimizer.zero_grad()
                scores = normalize(network(inputs[some]), dim=1) @ normalize(rows, dim=1).T / 0.15
                cross_entropy(scores, classes[some]).backward()
                optimizer.step()
        with torch.no_grad():
            return ((network(inputs[test]) @ normalize(rows, dim=1).T).argmax(dim=1) == classes[test]).double().mean().item()

    random = normalize(torch.randn(400, 100, generator=made), dim=1)
    fixed = accuracy(code_book(400, 100), learned=False)
    assert fixed >= accuracy(random, learned=True) - 0.01 > 0.9
    assert fixed >= accuracy(random, learned=False) - 0.005
