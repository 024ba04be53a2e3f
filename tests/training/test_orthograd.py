"""⊥Grad: what it leaves of a gradient, that it is one optimizer with its base, and that a run with it resumes bitwise."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data import open_format
from dexml.config import load
from dexml.errors import InputError
from training import checkpoint
from training.config import Config, check, settle
from training.optimizers.orthograd import OrthoGrad, project_
from training.run import Run, hold_out
from training.world import ALONE, World

BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
}


def rows(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def cosine(weight: Tensor, gradient: Tensor) -> float:
    w, g = weight.double().flatten(), gradient.double().flatten()
    return float((w @ g).abs() / (w.norm() * g.norm()))


@pytest.mark.parametrize("near", [0.0, 0.9, 0.99999])
@pytest.mark.parametrize("shape", [(2,), (7, 5), (2000, 384)])
def test_what_is_left_is_orthogonal_and_as_long(shape: tuple[int, ...], near: float):
    weight, other = rows(*shape, seed=0), rows(*shape, seed=1)
    gradient = near * weight + (1 - near) * other
    length = gradient.double().norm()
    project_(gradient, weight)
    assert cosine(weight, gradient) <= 1e-6
    assert gradient.double().norm().item() == pytest.approx(length.item(), rel=1e-6)


def test_it_is_the_part_that_the_formula_names_whatever_the_strides_and_the_number_type():
    weight, gradient = rows(6, 4, seed=0, dtype=torch.float64), rows(6, 4, seed=1, dtype=torch.float64)
    w, g = weight.flatten(), gradient.flatten()
    left = g - (w @ g) / (w @ w) * w
    wanted = (left * g.norm() / left.norm()).view(6, 4)
    for dtype, near in ((torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        found = gradient.T.to(dtype).contiguous().T
        project_(found, weight.to(dtype))
        torch.testing.assert_close(found.double(), wanted, atol=near, rtol=near)


def test_where_there_is_no_orthogonal_direction():
    ones, scale, start = torch.ones(50), torch.tensor(2.0), torch.zeros(5)
    parallel = 3.1 * ones
    project_(parallel, ones)
    assert (parallel == 0).all(), "rounding is no direction, and is not scaled up to one"
    single, from_zero = torch.tensor(0.5), torch.arange(5.0)
    project_(single, scale)
    project_(from_zero, start)
    assert single == 0.5 and from_zero.tolist() == list(range(5))
    nothing = torch.zeros(50)
    project_(nothing, ones)
    assert (nothing == 0).all()


def test_a_gradient_that_is_not_finite_is_not_hidden():
    for bad in (torch.nan, torch.inf):
        gradient = torch.tensor([1.0, bad, 2.0])
        project_(gradient, torch.ones(3))
        assert not torch.isfinite(gradient).all()


def test_a_row_without_a_gradient_stays_where_it_is_and_a_sparse_gradient_is_the_dense_one():
    tables = [nn.Embedding.from_pretrained(rows(6, 3, seed=0), freeze=False, sparse=sparse) for sparse in (False, True)]
    for table in tables:
        optimizer = OrthoGrad(torch.optim.SGD(table.parameters(), lr=0.1))
        table(torch.tensor([1, 4, 1])).square().sum().backward()
        optimizer.step()
    moved = tables[0].weight.detach() - rows(6, 3, seed=0)
    assert (moved[[0, 2, 3, 5]] == 0).all() and (moved[[1, 4]] != 0).all()
    assert cosine(rows(6, 3, seed=0), moved) <= 1e-6
    torch.testing.assert_close(tables[1].weight, tables[0].weight)


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def learn(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, scheduler: Any = None, first: int = 0) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        net(rows(16, 4, seed=step)).square().sum().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize("base", list(BASES))
def test_resuming_with_a_scheduler_is_bitwise(base: str):
    def made() -> tuple[nn.Module, OrthoGrad, torch.optim.lr_scheduler.LRScheduler]:
        net = model()
        optimizer = OrthoGrad(BASES[base](net.parameters()))
        return net, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)

    whole, optimizer, scheduler = made()
    learn(whole, optimizer, 8, scheduler)
    assert optimizer.param_groups is optimizer.base.param_groups and optimizer.state is optimizer.base.state

    cut, before, schedule = made()
    learn(cut, before, 3, schedule)
    kept = io.BytesIO()
    torch.save([cut.state_dict(), before.state_dict(), schedule.state_dict()], kept)
    rest, after, schedule = made()
    kept.seek(0)
    for part, state in zip((rest, after, schedule), torch.load(kept), strict=True):
        part.load_state_dict(state)
    assert after.param_groups is after.base.param_groups, "loading does not part them"
    learn(rest, after, 5, schedule, first=3)
    assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))
    plain = model()
    learn(plain, BASES[base](plain.parameters()), 8)
    assert not torch.equal(next(plain.parameters()), next(whole.parameters()))


def test_it_is_torchs_optimizer_in_every_other_way():
    net, seen = model(), []
    optimizer = OrthoGrad(BASES["adam"]([net[0].weight]))
    optimizer.add_param_group({"params": [net[2].weight], "lr": 0.5})
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.5]
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    again = copy.deepcopy(optimizer)
    assert isinstance(again, OrthoGrad) and again.base is not optimizer.base
    learn(net, optimizer, 2)
    assert seen == [1, 1]
    optimizer.zero_grad()
    assert net[0].weight.grad is None


def test_a_closures_gradient_is_projected_too():
    weight, target = nn.Parameter(rows(20, seed=0)), rows(20, seed=1)
    start, optimizer = weight.detach().clone(), OrthoGrad(torch.optim.SGD([weight], lr=1e-3))

    def closure() -> float:
        optimizer.zero_grad()
        value = (weight - target).square().sum()
        value.backward()
        return float(value.detach())

    assert optimizer.step(closure) == pytest.approx(float((start - target).square().sum()))
    assert cosine(start, weight.detach() - start) <= 1e-4


def test_it_goes_through_accelerate():
    accelerate = pytest.importorskip("accelerate")
    net, alone = model(), model()
    optimizer = accelerate.Accelerator(cpu=True).prepare(OrthoGrad(BASES["adamw"](net.parameters())))
    learn(net, optimizer, 3)
    learn(alone, OrthoGrad(BASES["adamw"](alone.parameters())), 3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), alone.parameters(), strict=True))


def make(config: Path, out: Path, *settings: str, world: World = ALONE) -> Run:
    read = load(Config, config, [f"out={out}", "optimizer.name=orthograd", "validation.fraction=0.2", *settings])
    files = open_format(read.data.path)
    split = files.read("train")
    settled, _ = settle(read, len(split))
    check(settled)
    return Run(settled, files.labels(), *hold_out(settled, split), world=world)


def parameters(run: Run) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in run.method.trained.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("kind", ["tiny_config", "tuning_config"])
def test_a_resumed_run_ends_with_bitwise_the_same_weights(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    config: Path = request.getfixturevalue(kind)
    whole = make(config, tmp_path / "whole")
    assert whole.go(lambda now: None)
    cut = make(config, tmp_path / "cut")
    assert not cut.go(lambda now: None, lambda: cut.step == 4)
    rest, state = make(config, tmp_path / "cut"), checkpoint.newest(tmp_path / "cut")
    assert state is not None and rest.knows(state)
    rest.resume(state)
    assert rest.go(lambda now: None)
    assert same(parameters(rest), parameters(whole))
    plain = make(config, tmp_path / "plain", "optimizer.name=adamw")
    assert plain.go(lambda now: None) and not same(parameters(plain), parameters(whole))
    assert not plain.knows(state), "a checkpoint of another optimizer is another run's"


def test_a_projection_over_ranks_is_that_of_the_whole_tensor():
    weight, whole = rows(10, 4, seed=0), rows(10, 4, seed=1)
    parts, gradients = weight.split([3, 7]), [part.clone() for part in whole.split([3, 7])]
    told: list[Tensor | None] = [None, None]
    meet = threading.Barrier(2, timeout=30)

    def rank(number: int) -> None:
        def total(_: Tensor, sums: Tensor) -> Tensor:
            told[number] = sums
            meet.wait()
            together = told[0] + told[1]
            meet.wait()
            return together

        project_(gradients[number], parts[number], total)

    ranks = [threading.Thread(target=rank, args=(number,)) for number in (0, 1)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    project_(whole, weight)
    torch.testing.assert_close(torch.cat(gradients), whole, atol=1e-6, rtol=1e-6)


def test_an_unknown_optimizer_or_option_is_refused(tiny_config: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"unknown optimizer 'orthogard'; did you mean 'orthograd'.*adamw"):
        make(tiny_config, tmp_path, "optimizer.name=orthogard")
    with pytest.raises(InputError, match=r"optimizer.*momentum"):
        make(tiny_config, tmp_path, "optimizer.momentum=0.9")
