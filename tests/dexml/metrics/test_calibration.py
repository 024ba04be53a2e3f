"""Calibration figures: against their definitions, against scikit-learn, and on answers whose probabilities are true."""

import math

import numpy as np
import pytest

from dexml.metrics import adaptive_ece_at, brier_at, ece_at, log_loss_at, reliability

RNG = np.random.default_rng(0)


def true_answers(rows: int, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are those by which the hits were drawn."""
    p = np.sort(RNG.random((rows, width)) ** 3, axis=1)[:, ::-1]
    return p, RNG.random(p.shape) < p


def test_true_probabilities_have_nearly_no_error_and_wrong_ones_their_own() -> None:
    p, y = true_answers(20_000)
    for error in (ece_at, adaptive_ece_at):
        assert error(5, p, y) < 0.01
        assert error(5, np.minimum(p + 0.1, 1), y) == pytest.approx(0.1, abs=0.02)


def test_the_definition_by_hand() -> None:
    p, y = [[0.9, 0.6, 0.3], [0.8, 0.5, math.nan]], [[1, 0, 1], [1, 1, 0]]
    curve = reliability(3, p, y, 2, equal_width=True)
    assert curve.count.tolist() == [1, 4], "0.3 alone is below one half, and what is missing is nowhere"
    assert curve.confidence.tolist() == pytest.approx([0.3, 0.7])
    assert curve.accuracy.tolist() == pytest.approx([1.0, 0.75])
    assert curve.ece == pytest.approx((0.7 + 4 * 0.05) / 5)
    assert brier_at(1, p, y) == pytest.approx((0.01 + 0.04) / 2)
    assert log_loss_at(2, p, y) == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.5]).mean())


def test_equal_masses_are_equal_and_equal_probabilities_stay_together() -> None:
    p, y = true_answers(300)
    assert reliability(5, p, y, 15).count.tolist() == [100] * 15
    few = np.round(p, 1)
    shuffled = RNG.permutation(len(p))
    one, other = reliability(5, few, y), reliability(5, few[shuffled], y[shuffled])
    assert one.count.tolist() == other.count.tolist()
    assert one.accuracy.tolist() == other.accuracy.tolist()
    assert len(one.count) <= 11


def test_scikit_learn_has_the_same_losses_and_the_same_curve() -> None:
    reference = pytest.importorskip("sklearn.metrics")
    curve = pytest.importorskip("sklearn.calibration").calibration_curve
    p, y = true_answers(500)
    assert brier_at(8, p, y) == pytest.approx(reference.brier_score_loss(y.ravel(), p.ravel()), abs=1e-12)
    assert log_loss_at(8, p, y) == pytest.approx(reference.log_loss(y.ravel(), np.clip(p.ravel(), 1e-7, 1 - 1e-7)), abs=1e-9)
    accuracy, confidence = curve(y.ravel(), p.ravel(), n_bins=10)
    ours = reliability(8, p, y, 10, equal_width=True)
    np.testing.assert_allclose(ours.accuracy, accuracy)
    np.testing.assert_allclose(ours.confidence, confidence)


def test_a_sure_mistake_costs_much_and_not_infinity() -> None:
    assert log_loss_at(1, [[1.0]], [[False]]) == pytest.approx(-math.log(1e-7))


def test_a_softmax_may_be_above_one_by_rounding() -> None:
    assert brier_at(1, [[1 + 1e-6]], [[True]]) == 0


def test_no_answers_have_no_figure() -> None:
    for figure in (ece_at, adaptive_ece_at, brier_at, log_loss_at):
        assert math.isnan(figure(5, np.full((2, 5), math.nan), np.zeros((2, 5))))
        assert math.isnan(figure(5, np.zeros((0, 5)), np.zeros((0, 5))))


@pytest.mark.parametrize(
    ("k", "p", "y", "bins", "said"),
    [
        (0, [[0.5]], [[1]], 15, "k must be at least 1"),
        (1, [[0.5]], [[1]], 0, "bins must be at least 1"),
        (1, [[0.5]], [[1, 0]], 15, r"\(1, 1\) and hits \(1, 2\)"),
        (1, [0.5], [1], 15, r"must be two \(N, K\)"),
        (1, [[1.5]], [[1]], 15, "must lie in 0..1, got 1.5"),
        (1, [[-math.inf]], [[1]], 15, "must lie in 0..1"),
    ],
)
def test_what_is_no_probability_is_said(k: int, p: object, y: object, bins: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        reliability(k, p, y, bins)
