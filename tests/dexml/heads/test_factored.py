"""The factored head against plain SGD on all of W, in float64."""

from __future__ import annotations

import pytest
import torch

from dexml.heads.factored import FactoredHead
from dexml.losses.z_loss import ZLoss
from dexml.types import Positives

LABELS, WIDTH, BATCH, RATE = 3000, 24, 8, 40.0


def batch(step: int) -> tuple[torch.Tensor, Positives]:
    """A batch of rows with 0 to 3 positives, many of them the same labels."""
    made = torch.Generator().manual_seed(step)
    rows = torch.randn(BATCH, WIDTH, generator=made, dtype=torch.float64)
    chosen = torch.randint(40, (BATCH, 3), generator=made).tolist()
    return rows, Positives.from_rows([found[: number % 4] for number, found in enumerate(chosen)], LABELS)


@pytest.mark.parametrize("every", [7, 1000])
def test_sixty_steps_are_those_of_dense_sgd(every: int):
    made = torch.Generator().manual_seed(99)
    dense = torch.randn(LABELS, WIDTH, generator=made, dtype=torch.float64) * 0.1
    # A temperature of 1: outputs are W·x.
    loss = ZLoss(temperature=1.0, a=0.8, b=1.5)
    head = FactoredHead(dense, loss, every=every)
    fixed = 0
    for step in range(60):
        rows, positives = batch(step)
        rows.requires_grad_()
        weights = dense.clone().requires_grad_()
        value = loss(rows, weights, positives)
        of_rows, of_weights = torch.autograd.grad(value, (rows, weights))
        dense = dense - RATE * of_weights
        found, gradient = head.step(rows.detach(), positives, RATE)
        assert found.item() == pytest.approx(value.item(), rel=1e-9)
        assert torch.allclose(gradient, of_rows, rtol=0, atol=1e-9)
        fixed += head.stabilise() if step == 30 else 0
    assert (head.weights - dense).abs().max() < 1e-9 < (dense - head.v).abs().max(), "the weights moved, and are the same"
    assert (head.squares - dense.T @ dense).abs().max() < 1e-9 * dense.square().sum()
    assert (head.sums - dense.sum(dim=0)).abs().max() < 1e-9 * dense.abs().sum()
    assert (head.inverse @ head.u - torch.eye(WIDTH)).abs().max() < 1e-9
    kept = (head.squares, head.sums)
    head.refresh()
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(kept, (head.squares, head.sums), strict=True))


def test_singular_values_come_back_and_the_weights_stay():
    made = torch.Generator().manual_seed(0)
    head = FactoredHead(torch.randn(50, 6, generator=made, dtype=torch.float64), ZLoss())
    head.u = torch.diag(torch.tensor([0.001, 0.3, 0.5, 1.0, 2.0, 9.0], dtype=torch.float64)) @ head.u
    before = head.weights
    assert head.stabilise() == 3
    values = torch.linalg.svdvals(head.u)
    assert values.min() >= 0.5 - 1e-12 and values.max() <= 2 + 1e-12
    assert torch.allclose(head.weights, before, rtol=0, atol=1e-12)
    assert head.stabilise() == 0


def test_z_loss_knows_neither_scale_nor_level_and_log_softmax_does():
    made = torch.Generator().manual_seed(1)
    outputs = torch.randn(5, 300, generator=made, dtype=torch.float64)
    positives = Positives.from_rows([[1], [2, 7], [], [0, 1, 2], [299]], 300)
    loss = ZLoss(temperature=1.0, a=0.7, b=2.0)
    one = torch.eye(300, dtype=torch.float64)

    def z(values: torch.Tensor) -> float:
        return loss(values, one, positives).item()

    def log_softmax(values: torch.Tensor) -> float:
        return -torch.log_softmax(values, dim=1)[0, 1].item()

    assert z(3.7 * outputs + 11) == pytest.approx(z(outputs), abs=1e-12)
    assert abs(log_softmax(3.7 * outputs + 11) - log_softmax(outputs)) > 0.1
    grown = outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(grown, one, positives), grown)
    assert gradient.sum(dim=1).abs().max() < 1e-15 and (gradient * outputs).sum(dim=1).abs().max() < 1e-14
