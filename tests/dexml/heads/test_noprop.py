"""NoProp's schedule keeps its marginals, no gradient passes between blocks, and answers start from noise alone."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from dexml.heads.noprop import Blocks, Schedule, centroids
from dexml.types import Positives

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def blocks(count: int = 4) -> Blocks:
    torch.manual_seed(0)
    made = Blocks(count, 6, 5, 8).double()
    made.start()
    return made


@pytest.mark.parametrize("count", [1, 2, 10, 100])
def test_a_right_guess_keeps_the_marginals(count: int):
    schedule = Schedule.cosine(count)
    assert schedule.kept[0] == 0 and 0 < schedule.kept[-1] < 1 and (schedule.kept.diff() > 0).all()
    before, now = schedule.kept[:-1], schedule.kept[1:]
    mean = schedule.a + schedule.b * before.sqrt()
    variance = schedule.b.square() * (1 - before) + schedule.c
    assert (mean - now.sqrt()).abs().max() <= 1e-12
    assert (variance - (1 - now)).abs().max() <= 1e-12
    assert (schedule.c >= 0).all()


def test_noise_around_an_embedding_is_as_the_schedule_says():
    made, target = blocks(), torch.tensor([[3.0, 0.0, 0.0, 0.0, -1.0]], dtype=torch.float64)
    drawn = made.noised(target.expand(20_000, 5), torch.Generator().manual_seed(0))
    kept = made.schedule.kept[:-1, None]
    assert (drawn.mean(dim=1) - kept.sqrt() * target).abs().max() < 0.05
    assert (drawn.var(dim=1) - (1 - kept)).abs().max() < 0.05


def test_no_gradient_passes_from_a_block_to_another():
    made = blocks()
    rows, targets = torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    losses = made.losses(rows, targets)
    for number in range(4):
        for gradient in torch.autograd.grad(losses[number], list(made.parameters()), retain_graph=True):
            others = [other for other in range(4) if other != number]
            assert gradient[number].any() and not gradient[others].any()


def test_the_losses_together_move_a_block_as_its_own_does():
    made, draw = blocks(), torch.Generator()
    rows, targets = torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    whole = torch.autograd.grad(made.losses(rows, targets, draw.manual_seed(1)).sum(), made.enter)[0]
    alone = torch.autograd.grad(made.losses(rows, targets, draw.manual_seed(1))[2], made.enter)[0]
    assert torch.equal(whole[2], alone[2])


def test_an_answer_knows_nothing_of_labels():
    assert list(inspect.signature(Blocks.denoise).parameters) == ["self", "rows", "start", "generator", "blocks"]
    made, rows = blocks(), torch.randn(7, 6, dtype=torch.float64)
    torch.nn.init.normal_(made.leave)
    start = torch.randn(5, dtype=torch.float64)
    whole = made.denoise(rows, start)
    assert torch.equal(made.denoise(rows, start), whole)
    assert torch.allclose(made.denoise(rows[2:3], start), whole[2:3], atol=1e-12)
    assert (made.denoise(rows, -start) - whole).abs().max() > 1e-3


def test_blocks_go_one_after_the_other():
    made, rows, start = blocks(3), torch.randn(4, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    torch.nn.init.normal_(made.leave)
    z = start.expand(4, 5)
    for number in range(3):
        hidden = torch.relu(torch.cat([z, rows], dim=1) @ made.enter[number] + made.enter_bias[number])
        guess = made.signal * (hidden @ made.leave[number] + made.leave_bias[number])
        z = made.schedule.a[number] * guess + made.schedule.b[number] * z
        assert torch.allclose(made.denoise(rows, start, blocks=number + 1), z)
    noisy = made.denoise(rows, start, torch.Generator().manual_seed(0))
    assert (noisy - z).abs().max() > 1e-3 and torch.equal(made.denoise(rows, start, torch.Generator().manual_seed(0)), noisy)


def test_a_centroid_is_that_of_all_positives():
    labels = torch.eye(3)
    found = centroids(labels, Positives.from_rows([[0, 2], [], [1]], 3))
    assert torch.allclose(found, torch.tensor([[0.5**0.5, 0, 0.5**0.5], [0, 0, 0], [0, 1, 0]]))


def test_ten_classes_are_told_apart_as_by_back_propagation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from bench_noprop import HIDDEN, Made, accuracies, by_backpropagation, trained_blocks

    made, threads = Made.of(0), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        answers = accuracies(made, trained_blocks(made, 15, 0), 0)
        reached = by_backpropagation(made, HIDDEN, 15, 0)
    finally:
        torch.set_num_threads(threads)
    assert answers["NoProp, one z_0, along the mean"] >= reached - 0.02 and reached > 0.85
    assert answers["block 1 alone"] >= reached - 0.02  # the control: the chain adds nothing here
