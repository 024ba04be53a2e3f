"""The metrics against the definitions of METHODS §4 written out row by row in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dexml import metrics
from dexml.types import Positives


def problem(seed: int) -> tuple[np.ndarray, Positives, np.ndarray]:
    random = np.random.default_rng(seed)
    rows, labels, depth = 17, 23, 12
    truth = Positives.from_rows(
        [random.choice(labels, random.integers(0, 9), replace=False).tolist() for _ in range(rows)], labels
    )
    ranked = np.stack([random.permutation(labels)[:depth] for _ in range(rows)]).astype(np.int64)
    ranked[random.random(ranked.shape) < 0.1] = -1  # fewer answers than asked for
    counts = random.integers(0, 40, labels).astype(np.int64)
    return ranked, truth, metrics.propensity_weights(counts, 100, 0.55, 1.5)


def ideal(m: int) -> float:
    return sum(1 / math.log2(r + 1) for r in range(1, m + 1))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("k", [1, 3, 5, 20])
def test_figures_equal_their_definitions(seed, k):
    ranked, truth, weights = problem(seed)
    precision, recall, ndcg, got, best = [], [], [], [], []
    for row in range(len(truth)):
        true = set(truth.row(row).tolist())
        hit = [int(label) in true for label in ranked[row, :k]]
        precision.append(sum(hit) / k)
        recall.append(sum(hit) / max(len(true), 1))
        gain = sum(1 / math.log2(r + 2) for r, h in enumerate(hit) if h)
        ndcg.append(gain / ideal(min(k, len(true))) if true else 0)
        got.append(sum(weights[label] for label, h in zip(ranked[row], hit, strict=False) if h))
        best.append(sum(sorted((weights[label] for label in true), reverse=True)[:k]))
    assert metrics.precision_at(ranked, truth, k) == pytest.approx(100 * np.mean(precision))
    assert metrics.recall_at(ranked, truth, k) == pytest.approx(100 * np.mean(recall))
    assert metrics.ndcg_at(ranked, truth, k) == pytest.approx(100 * np.mean(ndcg))
    assert metrics.propensity_precision_at(ranked, truth, weights, k) == pytest.approx(100 * sum(got) / sum(best))


def test_a_label_named_twice_counts_once():
    truth = Positives.from_rows([[4]], 6)
    assert metrics.hits(np.array([[4, 4, 1]]), truth).tolist() == [[True, False, False]]


def test_propensity_weights_follow_the_formula():
    weights = metrics.propensity_weights(np.array([0, 7]), 1000, 0.55, 1.5)
    c = (math.log(1000) - 1) * 2.5**0.55
    assert weights == pytest.approx([1 + c * 1.5**-0.55, 1 + c * 8.5**-0.55])


def test_empty_rows_count_in_the_mean():
    truth = Positives.from_rows([[0], []], 3)
    assert metrics.precision_at(np.array([[0], [0]]), truth, 1) == 50
    assert metrics.ndcg_at(np.array([[0], [0]]), truth, 1) == 50


def test_wrong_shapes_and_numbers_are_refused():
    truth = Positives.from_rows([[0]], 3)
    with pytest.raises(ValueError, match="2 ranked rows but 1"):
        metrics.precision_at(np.zeros((2, 1), dtype=np.int64), truth, 1)
    with pytest.raises(ValueError, match="must lie in"):
        metrics.precision_at(np.array([[3]]), truth, 1)
    with pytest.raises(ValueError, match="k must be at least 1"):
        metrics.precision_at(np.array([[0]]), truth, 0)
