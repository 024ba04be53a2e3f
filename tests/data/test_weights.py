"""Soft positives in JSON Lines: weights go with their labels, rows without any weigh 1, and what is wrong is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data import open_format
from data.jsonl import JsonLines
from dexml.errors import InputError
from dexml.losses import LOSSES
from dexml.types import Positives


def made(root: Path, rows: list[dict[str, object]]) -> Path:
    (root / "labels.jsonl").write_text("".join(f'{{"id": "{name}", "text": "{name}"}}\n' for name in "abcd"))
    (root / "train.jsonl").write_text("".join(json.dumps({"text": "t", **row}) + "\n" for row in rows))
    return root


def test_weights_follow_their_labels(tmp_path: Path):
    rows = [
        {"labels": ["c"]},
        {"labels": ["d", "b"], "weights": [0.75, 0.25]},
        {"labels": [], "weights": []},
        {"labels": ["b", "a", "b"]},
    ]
    positives = open_format(made(tmp_path, rows)).read("train").positives
    assert positives.indptr.tolist() == [0, 1, 3, 3, 5] and positives.indices.tolist() == [2, 1, 3, 0, 1]
    assert positives.weights is not None and positives.weights.tolist() == [1, 0.25, 0.75, 1, 1]
    assert open_format(made(tmp_path, rows[:1])).read("train").positives.weights is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"labels": ["a", "b"], "weights": [1]}, "line 1, weights: a list of 2 numbers"),
        ({"labels": ["a"], "weights": 1}, "line 1, weights: a list of 1 numbers"),
        ({"labels": ["a"], "weights": [0]}, r"line 1, weights\[0\]: a number above 0"),
        ({"labels": ["a"], "weights": ["1"]}, r"line 1, weights\[0\]: a number above 0"),
        ({"labels": ["a"], "weights": [True]}, r"line 1, weights\[0\]: a number above 0"),
        ({"labels": ["a", "a"], "weights": [1, 2]}, "line 1, weights: a label stands twice"),
    ],
)
def test_weights_that_do_not_fit_are_told(tmp_path: Path, row: dict[str, object], said: str):
    with pytest.raises(InputError, match=said):
        open_format(made(tmp_path, [row])).read("train")


def test_weights_are_refused_where_they_would_be_lost(tmp_path: Path):
    files = open_format(made(tmp_path, [{"labels": ["a"], "weights": [0.5]}]))
    with pytest.raises(InputError, match="keeps no weights"):
        JsonLines.write(tmp_path / "out", files.labels(), {"train": files.read("train")})


@pytest.mark.parametrize("name", ["decoupled_softmax", "soft_topk"])
def test_a_loss_is_that_of_its_positives_by_their_weights(name: str):
    random = torch.Generator().manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(3, 8, generator=random), dim=1)
    labels = torch.nn.functional.normalize(torch.randn(6, 8, generator=random), dim=1)
    ends, indices = np.array([0, 2, 3, 3]), np.array([1, 4, 2])
    loss = LOSSES.build(name)
    plain = loss.shares(Positives(ends, indices, 6))
    alike = loss.shares(Positives(ends, indices, 6, np.array([2, 2, 7], dtype=np.float32)))
    assert plain.tolist() == alike.tolist() == [0.5, 0.5, 1]
    assert loss.shares(Positives(ends, indices, 6, np.array([3, 1, 7], dtype=np.float32))).tolist() == [0.75, 0.25, 1]
    values = [
        float(loss(queries, labels, Positives(ends, indices, 6, np.array([one, 1 - one, 1], dtype=np.float32))))
        for one in (0.25, 0.5, 0.75)
    ]
    assert values[1] == pytest.approx((values[0] + values[2]) / 2, rel=1e-5) and values[0] != pytest.approx(values[2], rel=1e-3)
    assert values[1] == pytest.approx(float(loss(queries, labels, Positives(ends, indices, 6))), rel=1e-6)
