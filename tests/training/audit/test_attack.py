"""What is perturbed is what the tower reads, its gradient is right, and an attack that succeeds has its list returned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dexml.model import DualEncoder
from index.exact import ExactIndex
from index.live import LiveIndex
from training.audit.attack import WAYS, Attacked, attack, nearest_point, violations
from training.audit.inputs import Inputs

TEXTS = ["how to do sorting and ordering of arrays", "drawing random numbers", "sparse matrices with few entries and"]
MODELS = {
    "tokens over a bag": ("bag", {}, "tokens", {"dimension": 32, "start": "random"}),
    "residual over a transformer": ("transformer", {"model": ""}, "residual", {}),
    "summed over both": ("joint", {"model": ""}, "summed", {"start": "random"}),
}


def model_of(kind: str, transformer: Path) -> DualEncoder:
    torch.manual_seed(0)
    encoder, options, tower, tower_options = MODELS[kind]
    options = {key: str(transformer) for key in options} | ({"min_df": 1} if encoder != "transformer" else {})
    return DualEncoder.make(encoder, options, tower, tower_options, TEXTS)


def unit(count: int, dimension: int, seed: int) -> torch.Tensor:
    rows = torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def index_of(rows: torch.Tensor) -> LiveIndex:
    index = ExactIndex(scan_copy="none")
    index.build(rows)
    return LiveIndex(index, rows, index.kernels)


@pytest.mark.parametrize("kind", MODELS)
def test_inputs_are_the_queries_and_every_part_moves_its_own_query_alone(kind: str, tiny_transformer: Path):
    model = model_of(kind, tiny_transformer)
    inputs = Inputs(model, TEXTS)
    plain = model.embed_queries(TEXTS)[0]
    assert len(inputs.plain) == (2 if kind == "summed over both" else 1)
    torch.testing.assert_close(inputs.rows(inputs.nothing()).detach(), plain, atol=1e-6, rtol=0)
    added = inputs.start(0.1, 0)
    rows = inputs.rows(added)
    assert (rows - plain).norm(dim=1).min() > 1e-3
    aim = unit(1, 32, 1)[0]
    gradients = torch.autograd.grad(rows[1] @ aim, added)
    of_queries = inputs.energy([gradient * (gradient != 0) for gradient in gradients])
    assert of_queries[1] > 0 and of_queries[0] == of_queries[2] == 0
    torch.testing.assert_close(model.embed_queries(TEXTS)[0], plain, atol=0, rtol=0), "nothing stays changed"
    with torch.no_grad():
        step = [1e-2 * gradient for gradient in gradients]
        moved = inputs.rows([part + by for part, by in zip(added, step, strict=True)])[1] @ aim - rows[1] @ aim
    assert float(moved) == pytest.approx(float(of_queries[1]) * 1e-2, rel=0.1)


def test_padding_is_no_part_of_a_query(tiny_transformer: Path):
    inputs = Inputs(model_of("residual over a transformer", tiny_transformer), TEXTS)
    tokens = torch.tensor([10.0, 5.0, 8.0])  # with [CLS] and [SEP]
    ones = [torch.ones_like(part) for part in inputs.plain]
    assert torch.equal(inputs.energy(ones), 32 * tokens)


def test_the_hinge_is_that_of_the_inequalities():
    rows, queries = unit(50, 16, 0), unit(4, 16, 1)
    targets = np.array([[3, 9, 1]] * 4)
    got = violations(index_of(rows), queries, targets, 0.05)
    for query, loss in zip(queries, got.tolist(), strict=True):
        scores = (rows @ query).tolist()
        expected = 0.0
        for i in range(1, 4):
            taken = targets[0, :i].tolist()
            others = max(score for label, score in enumerate(scores) if label not in taken)
            expected += max(0.0, 0.05 + others - min(scores[label] for label in taken)) / 3
        assert loss == pytest.approx(expected, abs=1e-6)


def test_the_nearest_point_is_no_distance_away_from_an_answer_and_none_where_there_is_none():
    rows, query = unit(50, 16, 0), unit(1, 16, 1)
    index = index_of(rows)
    first = index.search(query, 2, 1.0).ids.numpy()
    assert nearest_point(index, query, first, 1e-6)[0] == pytest.approx(0, abs=1e-9)
    assert nearest_point(index, query, first[:, ::-1].copy(), 1e-6)[0] > 0
    assert nearest_point(index, query, np.array([[0, 1]]), 0.99)[0] == 0, "two rows are never that far apart"


@pytest.mark.parametrize("way", WAYS)
def test_an_attack_succeeds_where_it_says_so(way: str, tiny_transformer: Path):
    model = model_of("residual over a transformer", tiny_transformer)
    labels = model.embed_labels([f"{word} {other}" for word in TEXTS[0].split() for other in TEXTS[1].split()])
    index = index_of(labels)
    inputs = Inputs(model, TEXTS)
    targets = np.array([[4], [2], [17]])
    made = attack(inputs, index, targets, replace(WAYS[way], rate=0.05, weight=100.0), iterations=30)
    assert made is not None and made.rate > 0
    curve = made.curve(30)
    assert len(curve) == 30 and curve[-1] == made.rate and curve == sorted(curve)
    won = made.reached > 0
    assert np.isfinite(made.norms[won]).all() and np.isnan(made.norms[~won]).all()
    again = attack(inputs, index, targets, replace(WAYS[way], rate=0.05, weight=100.0), iterations=30)
    assert again is not None and np.array_equal(again.norms, made.norms, equal_nan=True), "of one seed"
    assert attack(inputs, index, targets, WAYS[way], told=lambda: True) is None


def test_batches_are_joined():
    one = Attacked(np.array([3, 0]), np.array([1.0, np.nan], dtype=np.float32), np.array([0.1, np.nan], dtype=np.float32))
    both = Attacked.joined([one, one])
    assert both.rate == 0.5 and both.curve(4) == [0, 0, 0.5, 0.5]
