"""A tower of fewer dimensions that starts at another, and towers whose weights and label rows are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dexml.encoders import Encoder
from dexml.quantization import codes
from dexml.towers import TOWERS, Tower
from dexml.towers.compact import principal_axes
from dexml.types import Bag, Features

WIDTH, PIECES = 12, 30


class Both(Encoder):
    """Random features of both kinds; as many dense numbers as the towers' rows have."""

    max_tokens = 100

    def fit(self, texts: Sequence[str]) -> None: ...

    def encode(self, texts: Sequence[str]) -> Features:
        draw = torch.Generator().manual_seed(len(texts))
        features = torch.randint(PIECES, (4 * len(texts),), generator=draw)
        bag = Bag(4 * torch.arange(len(texts) + 1), features, torch.full((len(features),), 0.5))
        return Features(torch.nn.functional.normalize(torch.randn(len(texts), WIDTH, generator=draw), dim=1), bag)

    def width(self) -> int:
        return PIECES

    def dense_width(self) -> int:
        return WIDTH

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


def built(name: str, **options: object) -> Tower:
    torch.manual_seed(0)
    tower = TOWERS.build(name, options, Both())
    tower.start_from(Both())
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return tower.eval()


QUERIES, LABELS = Both().encode(["q"] * 5), Both().encode(["y"] * 7)


def scores(tower: Tower) -> torch.Tensor:
    return tower.queries(QUERIES) @ tower.labels(LABELS, trained=False).T


@pytest.mark.parametrize(("student", "teacher"), [("compact", "summed"), ("tokens", "tokens"), ("summed", "summed")])
def test_a_student_of_as_many_dimensions_starts_at_the_teacher(student: str, teacher: str):
    options = {"dimension": WIDTH} if student == "compact" else {}
    of, own = built(teacher), TOWERS.build(student, options, Both()).eval()
    assert own.adopt(of, torch.eye(own.dimension))
    assert torch.allclose(scores(own), scores(of), atol=1e-5)


def test_a_student_of_fewer_dimensions_is_near_where_the_teacher_has_few():
    of, own = built("summed"), TOWERS.build("compact", {"dimension": 4}, Both()).eval()
    basis = torch.linalg.qr(torch.randn(WIDTH, 4, generator=torch.Generator().manual_seed(1)))[0]
    with torch.no_grad():  # what the table and the matrix say lies in four dimensions
        of.table.copy_(of.table @ basis @ basis.T)
        of.matrix.copy_(basis @ basis.T @ of.matrix)
        of.bias.copy_(of.bias @ basis @ basis.T)
    dense = LABELS.dense @ basis @ basis.T
    flat = Features(torch.nn.functional.normalize(dense, dim=1), LABELS.bag)
    axes = principal_axes(of.labels(flat, trained=False), 4)
    assert own.adopt(of, axes)
    rows = own.labels(flat, trained=False)
    assert torch.allclose(rows @ rows.T, of.labels(flat, trained=False) @ of.labels(flat, trained=False).T, atol=1e-5)


def test_other_kinds_and_sizes_are_not_adopted():
    assert not built("residual").adopt(built("identity"), torch.eye(PIECES))
    assert not built("summed").adopt(built("summed"), torch.eye(WIDTH).flip(0))
    assert not built("compact", dimension=4).adopt(built("tokens"), torch.zeros(384, 4))


def test_principal_axes_are_orthonormal_in_order_and_keep_most_of_the_rows():
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9, 2, 5, 0.1, 3])
    axes = principal_axes(rows, 3)
    assert torch.allclose(axes.T @ axes, torch.eye(3), atol=1e-5)
    lengths = (rows @ axes).norm(dim=0)
    assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)
    assert [int(axis) for axis in axes.abs().argmax(dim=0)] == [1, 3, 5]


@pytest.mark.parametrize("name", ["tokens", "summed", "compact"])
def test_label_rows_of_a_rounded_tower_have_few_values_and_gradients_pass(name: str):
    tower = built(name)
    before = scores(tower)
    tower.free_vectors(len(LABELS))
    tower.bits = 4
    rows = tower.labels(LABELS, trained=True).detach()
    whole, step = codes(rows, 4)
    assert all(len(set(row.round(decimals=5).tolist())) <= 15 for row in rows) and whole.abs().max() <= 7 and (step > 0).all()
    assert not torch.allclose(scores(tower), before, atol=1e-4)
    assert torch.allclose(scores(tower), before, atol=0.2)
    queries, labels = tower.train()(QUERIES, LABELS)
    (queries @ labels.T).pow(2).sum().backward()
    for parameter, value in tower.named_parameters():
        assert value.grad is not None and value.grad.abs().sum() > 0, parameter
