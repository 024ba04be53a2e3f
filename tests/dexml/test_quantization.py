"""Numbers of a few bits: as many values as the bits allow, the gradient straight through, and back from a file bit by bit."""

from __future__ import annotations

import pytest
import torch

from dexml.quantization import STEPS, codes, packed, rounded, unpacked


def rows(count: int = 50, width: int = 33) -> torch.Tensor:
    made = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    made[3] = 0
    return made * torch.logspace(-3, 3, count)[:, None]


@pytest.mark.parametrize("bits", list(STEPS))
def test_whole_multiples_of_a_step_symmetric_and_few(bits: int):
    whole, step = codes(rows(), bits)
    most = 2 ** (bits - 1) - 1
    assert torch.equal(whole, whole.round()) and whole.abs().max() == most
    assert torch.allclose(rounded(rows(), bits), whole * step)
    assert torch.equal(rounded(-rows(), bits), -rounded(rows(), bits))
    assert (rounded(rows(), bits)[3] == 0).all()


def test_an_error_falls_by_four_with_each_bit_and_is_no_larger_than_that_of_steps_to_the_largest_number():
    given = rows()
    errors = {}
    for bits in (3, 4, 8):
        most = 2 ** (bits - 1) - 1
        plain = given.abs().amax(1, keepdim=True) / most
        naive = plain * (given / plain.clamp(min=1e-30)).round()
        errors[bits] = ((rounded(given, bits) - given).norm(dim=1) / given.norm(dim=1).clamp(min=1e-9)).square().mean()
        assert errors[bits] <= 1.02 * ((naive - given).norm(dim=1) / given.norm(dim=1).clamp(min=1e-9)).square().mean()
    assert errors[3] > 2.5 * errors[4] > 100 * errors[8] > 0


def test_the_gradient_goes_straight_through_and_without_bits_nothing_happens():
    given = rows().requires_grad_()
    weights = torch.randn(given.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((rounded(given, 3) * weights).sum(), given)
    assert torch.equal(gradient, weights)
    assert rounded(given, None) is given


@pytest.mark.parametrize("bits", list(STEPS))
def test_a_file_holds_what_is_rounded_in_as_many_bits(bits: int):
    state = {"table": rows(), "bias": torch.arange(5.0), "scale": torch.tensor(2.0)}
    kept = packed(state, bits)
    again = unpacked(kept)
    assert again.keys() == state.keys()
    assert torch.equal(again["table"], rounded(rows(), bits))
    assert torch.equal(again["bias"], state["bias"]) and torch.equal(again["scale"], state["scale"])
    assert kept["table.codes"].numel() == -(-rows().numel() * bits // 8)


def test_without_bits_a_file_holds_what_it_always_did():
    state = {"table": rows(), "bias": torch.arange(5.0)}
    assert packed(state, None).keys() == state.keys() == unpacked(state).keys()
    assert all(torch.equal(value, state[name]) for name, value in unpacked(packed(state, None)).items())
