"""Losses over labels spread over real processes equal the losses of one process, in float64 to 1e-10."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, multiprocessing
from torch.nn.functional import normalize

from dexml.errors import InputError
from dexml.losses import LOSSES, Loss
from dexml.losses.sharded import ShardedLoss
from dexml.types import Positives

B, L, D = 7, 23, 5
# Row 2 has none, row 4 every label, and labels 12 to 19 are nobody else's: whole shards without a positive.
ROWS = [[0, 3, 22], [1], [], [5, 6, 7, 8, 9, 10, 11], list(range(L)), [20, 21], [4]]
ALL_IN_ONE_ROW = Positives.from_rows(ROWS, L)
POSITIVES = Positives.from_rows([*ROWS[:4], [2, 22], *ROWS[5:]], L)
BOUNDS = {1: [0, L], 2: [0, 9, L], 4: [0, 9, 12, 20, L], 3: [0, 20, 20, L]}  # uneven, and one rank without labels
CASES = [
    ("decoupled_softmax", {}),
    ("decoupled_softmax", {"positives": "one"}),
    ("softmax", {}),
    ("bce", {}),
    ("squared_hinge", {"boundary": 0.2}),
    ("z_loss", {"a": 0.7, "b": 1.5}),
    ("soft_topk", {"k": 3}),
    ("soft_topk", {"k": L}),
    ("soft_topk", {"k": 1, "temperature": 0.001}),  # saturated sigmoids
]


class Gloo:
    """The collectives of a process group."""

    def __init__(self, size: int, group: dist.ProcessGroup | None = None) -> None:
        self.size, self.group = size, group

    def sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor


def inputs() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(0)
    queries, labels = (normalize(torch.randn(n, D, generator=made, dtype=torch.float64), dim=1) for n in (B, L))
    return queries, labels


def results(number: int, positives: Positives, loss: Loss, labels: slice) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(number)  # "one" draws
    queries, rows = inputs()
    queries, rows = queries.requires_grad_(), rows[labels].clone().requires_grad_()
    value = loss(queries, rows, positives)
    (3 * value).backward()
    assert queries.grad is not None and rows.grad is not None
    return value.detach(), queries.grad, rows.grad


def expected() -> list[tuple[Tensor, Tensor, Tensor]]:
    return [
        results(number, positives, LOSSES.build(name, options), slice(None))
        for number, (name, options) in enumerate(CASES)
        for positives in (POSITIVES, ALL_IN_ONE_ROW)
    ]


def rank(number: int, place: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=number, world_size=max(BOUNDS))
    for size, bounds in BOUNDS.items():
        group = dist.new_group(list(range(size)))
        if number >= size:
            continue
        (first, last), ranks = bounds[number : number + 2], Gloo(size, group)
        found = []
        for block_bytes in (1, 1 << 20):
            for case, (name, options) in enumerate(CASES):
                for positives in (POSITIVES, ALL_IN_ONE_ROW):
                    loss = ShardedLoss(LOSSES.build(name, options), first, ranks, block_bytes=block_bytes)
                    found.append(results(case, positives, loss, slice(first, last)))
        parts = ShardedLoss(LOSSES.build("softmax", {}), first, ranks, whole_gradient=False)
        found.append(results(0, POSITIVES, parts, slice(first, last)))
        named = {f"{case}.{part}": value.clone() for case, made in enumerate(found) for part, value in enumerate(made)}
        save_file(named, place / f"{size}-{number}.safetensors")
    dist.destroy_process_group()


def found_by(file: Path) -> list[list[Tensor]]:
    """Return the value and both gradients of each case of one rank."""
    named = load_file(file)
    return [[named[f"{case}.{part}"] for part in range(3)] for case in range(len(named) // 3)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each rank of each world found, by the same four processes, forked from one that has imported torch for them."""
    root = tmp_path_factory.mktemp("ranks")
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["dexml.losses.sharded", "torch.distributed"])
    multiprocessing.start_processes(rank, (root,), nprocs=max(BOUNDS), start_method="forkserver")
    return root


@pytest.mark.parametrize("size", list(BOUNDS))
def test_values_and_gradients_are_those_of_one_process(size: int, place: Path):
    ranks = [found_by(place / f"{size}-{number}.safetensors") for number in range(size)]
    for got, want in zip(zip(*[found[:-1] for found in ranks], strict=True), [*expected(), *expected()], strict=True):
        value, of_queries, of_labels = want
        for of_rank in got:
            assert of_rank[0] == pytest.approx(value.item(), abs=1e-10)
            torch.testing.assert_close(of_rank[1], of_queries, atol=1e-10, rtol=0)
        torch.testing.assert_close(torch.cat([of_rank[2] for of_rank in got]), of_labels, atol=1e-10, rtol=0)
    _, of_queries, _ = results(0, POSITIVES, LOSSES.build("softmax", {}), slice(None))
    torch.testing.assert_close(sum(found[-1][1] for found in ranks), of_queries, atol=1e-10, rtol=0)


def test_what_cannot_be_spread_is_refused():
    class Own(Loss):
        def __call__(self, queries: Tensor, labels: Tensor, positives: Positives) -> Tensor:
            return queries.sum()

    with pytest.raises(InputError, match="Own cannot be spread over ranks"):
        ShardedLoss(Own(), 0, Gloo(1))
    loss = ShardedLoss(LOSSES.build("softmax", {}), 20, Gloo(1))
    queries, labels = inputs()
    with pytest.raises(InputError, match="labels 20 to 43"):
        loss(queries, labels, POSITIVES)
    with pytest.raises(InputError, match="B rows of positives"):
        loss(queries[:2], labels, POSITIVES)
