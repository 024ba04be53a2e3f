"""StableMax learns where float32 cross-entropy has nothing left, and says where it cannot tell a positive from the rest."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from dexml.errors import InputError
from dexml.losses import LOSSES
from dexml.types import Positives

CLASSES, D, GAP = 113, 8, 25.0


def head() -> tuple[torch.Tensor, torch.nn.Parameter]:
    """A feature and weights of float32 that score its class GAP above each of 112 others."""
    made = torch.Generator().manual_seed(0)
    feature = torch.nn.functional.normalize(torch.randn(1, D, generator=made), dim=1)
    scores = torch.full((CLASSES,), -GAP / 2)
    scores[0] = GAP / 2
    weights = torch.randn(CLASSES, D, generator=made)
    weights += (scores - weights @ feature[0])[:, None] * feature
    return feature, torch.nn.Parameter(weights)


def of_torch(feature: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(feature @ weights.T, torch.tensor([0]))


def of_row(name: str):
    loss = LOSSES.build(name, {"temperature": 1.0, "products": "float32", "backend": "reference"})
    return lambda feature, weights: loss(feature, weights, Positives.from_rows([[0]], CLASSES))


@pytest.mark.parametrize("loss", [of_torch, of_row("softmax")], ids=["torch", "ours"])
def test_a_gap_of_25_freezes_cross_entropy_in_float32(loss):
    feature, weights = head()
    start, optimizer = weights.detach().clone(), torch.optim.SGD([weights], lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        value = loss(feature, weights)
        value.backward()
        assert value.item() == 0 and (weights.grad[0] == 0).all(), "loss and pull on the class are exactly 0"
        assert weights.grad.abs().max() < 2e-11  # e^-25, of the other classes: far below half a unit in a weight's last place
        optimizer.step()
    assert torch.equal(weights, start)


def test_a_gap_of_25_does_not_freeze_stablemax():
    feature, weights = head()
    start, optimizer = weights.detach().clone(), torch.optim.SGD([weights], lr=1.0)
    loss = of_row("stablemax")
    before = loss(feature, weights)
    before.backward()
    assert weights.grad[0].norm() > 1e-3 and before.item() > 0.1
    optimizer.step()
    assert not torch.equal(weights[0], start[0]) and loss(feature, weights).item() < before.item()


def test_unit_rows_are_held_to_the_bound_of_the_temperature():
    loss = LOSSES.build("stablemax", {"temperature": 0.05})
    loss.check(442)
    with pytest.raises(
        InputError, match=r"'stablemax' cannot tell a positive from 442 negatives.*441.*temperature to 0.049 or"
    ):
        loss.check(443)
    for labels in (443, 4_096, 13_896, 1_000_000):
        with pytest.raises(InputError) as refused:
            loss.check(labels)
        advised = float(re.search(r"temperature to (\S+) or", str(refused.value))[1])
        LOSSES.build("stablemax", {"temperature": advised}).check(labels)
    LOSSES.build("softmax").check(10**9)


def test_a_call_beyond_the_bound_is_a_warning_once_and_longer_rows_are_none(caplog):
    rows, positives = torch.nn.functional.normalize(torch.randn(500, D), dim=1), Positives.from_rows([[0]], 500)
    loss = LOSSES.build("stablemax", {"temperature": 0.05})
    with caplog.at_level(logging.WARNING):
        loss(2 * rows[:1], rows, positives)
        loss(rows[:1], rows[:400], Positives.from_rows([[0]], 400))
        assert caplog.messages == []
        loss(rows[:1], rows, positives)
        loss(rows[:1], rows, positives)
    assert len(caplog.messages) == 1 and "499 negatives" in caplog.messages[0]
