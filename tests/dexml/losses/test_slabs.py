"""Losses by slabs: the split into rows and label blocks changes nothing, and only the gradients asked for are made."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from dexml.kernels import numba_slabs as slabs
from dexml.losses import LOSSES
from dexml.losses.base import ScoreLoss
from dexml.types import Positives

B, L, D = 21, 517, 12


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    queries, labels = (normalize(torch.randn(n, D, generator=made, dtype=torch.float64), dim=1) for n in (B, L))
    return queries.to(dtype).requires_grad_(), labels.to(dtype).requires_grad_()


POSITIVES = Positives.from_rows([[(7 * i + 5 * j) % L for j in range(i % 6)] for i in range(B)], L)


@pytest.mark.parametrize("name", [name for name in LOSSES if issubclass(LOSSES[name], ScoreLoss)])
@pytest.mark.parametrize(("products", "tolerance"), [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_many_slabs_and_blocks_equal_float64(name, products, tolerance, monkeypatch):
    monkeypatch.setattr(slabs, "SLAB_BYTES", 1)
    monkeypatch.setattr(slabs, "LABELS", 96)
    single, double = inputs(torch.float32), inputs(torch.float64)
    value = LOSSES.build(name, {"products": products, "backend": "numba"})(*single, POSITIVES)
    exact = LOSSES.build(name)(*double, POSITIVES)
    assert value.item() == pytest.approx(exact.item(), rel=tolerance)
    for got, want in zip(torch.autograd.grad(value, single), torch.autograd.grad(exact, double), strict=True):
        assert (got - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_are_made_only_for_what_asks(name):
    queries, labels = inputs(torch.float32)
    value = LOSSES.build(name)(queries, labels.detach(), POSITIVES)
    (gradient,) = torch.autograd.grad(value, queries)
    assert gradient.shape == queries.shape
    with torch.no_grad():
        assert not LOSSES.build(name)(queries, labels, POSITIVES).requires_grad
