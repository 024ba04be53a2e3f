"""The ridge head is the least-squares solution, with a pull towards the labels' texts and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dexml.heads.ridge import Ridge
from dexml.types import Positives


def problem() -> tuple[torch.Tensor, Positives, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(40, 12, generator=made, dtype=torch.float64), dim=1)
    labels = [sorted(set(torch.randint(9, (1 + number % 3,), generator=made).tolist())) for number in range(40)]
    labels[7] = []  # a row that nobody labelled
    return rows, Positives.from_rows(labels, 9), torch.randn(9, 12, generator=made, dtype=torch.float64) / 12**0.5


@pytest.mark.parametrize("texts", [False, True])
def test_it_is_the_least_squares_solution(texts: bool):
    rows, positives, expected = problem()
    expected = expected if texts else torch.zeros_like(expected)
    labelled = np.flatnonzero(np.diff(positives.indptr))
    x = rows[torch.from_numpy(labelled)].numpy()
    y = positives.take(labelled).matrix().toarray().astype(float)
    outputs = x @ expected.numpy().T
    scale = (outputs * y).sum() / (outputs**2).sum() if texts else 0.0
    left = np.concatenate([x, np.sqrt(0.2) * np.eye(12)])
    right = np.concatenate([y, np.sqrt(0.2) * scale * expected.numpy().T])
    found = Ridge(penalty=0.2).fit(rows, positives, expected).numpy().T
    assert np.abs(found - np.linalg.lstsq(left, right, rcond=None)[0]).max() <= 1e-8


def test_a_large_penalty_leaves_the_texts_and_weights_of_pairs_do_not_count():
    rows, positives, expected = problem()
    far = Ridge(penalty=1e9).fit(rows, positives, expected)
    assert torch.nn.functional.cosine_similarity(far, expected).abs().min() > 1 - 1e-6
    weighted = Positives(positives.indptr, positives.indices, 9, np.full(len(positives.indices), 0.25, dtype=np.float32))
    one, other = (Ridge(penalty=0.5).fit(rows, given, expected) for given in (positives, weighted))
    assert torch.equal(one, other)
    [single] = Ridge(penalty=0.5).stages(rows.float(), positives, expected.float())
    assert single.dtype == torch.float32 and torch.allclose(single.double(), one, atol=1e-4)
