"""Calibration: on answers whose true probabilities are known, and of what must hold whatever was fitted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dexml.calibration import FILE, Calibration, Watched, curve, fit, temperature_of, thresholds_of, wilson
from dexml.errors import InputError
from dexml.metrics import ece_at


def made(**other: object) -> Calibration:
    facts = {"temperature": 0.05, "share": 0.5, "knots": (-3.0, 0.0, 2.0), "probabilities": (0.1, 0.5, 0.9)}
    return Calibration.model_validate({**facts, "rows": 100, "depth": 100, "ece": (0.5, 0.02), **other})


def answers(rows: int, share: float, seed: int, depth: int = 40) -> tuple[Watched, np.ndarray]:
    """Answers that are right with a probability that depends on g alone, and that probability."""
    random = np.random.default_rng(seed)
    scores = np.sort(random.normal(0.3, 0.15, (rows, 1)) + random.normal(0, 0.12, (rows, depth)), axis=1)[:, ::-1]
    log_z = random.normal(4, 2, rows)
    g = scores / 0.1 - share * log_z[:, None]
    true = 1 / (1 + np.exp(-(g - g.mean()) * 0.8))
    softmax = np.exp(scores / 0.1 - 12)
    return Watched(scores, random.random(g.shape) < true, log_z, 0.1, softmax.clip(0, 1), np.arange(rows) % 5), true


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_probabilities_of_other_rows_are_true_and_the_share_is_found(share: float):
    fitted = fit(answers(1000, share, 0)[0])
    others, true = answers(3000, share, 1)
    found = fitted.of(others.scores, others.log_z)
    assert abs(fitted.share - share) <= 0.1 and fitted.needs_log_z == (fitted.share > 0)
    assert np.abs(found - true).mean() < 0.02
    assert ece_at(5, found, others.hits) < 0.02 < 0.2 < ece_at(5, others.softmax, others.hits)
    assert fitted.ece[1] < 0.03 < fitted.ece[0] and len(fitted.knots) <= 100
    for precision in (0.5, 0.7, 0.8):
        assert others.hits[found >= fitted.threshold(precision)].mean() >= precision


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_calibration_changes_an_order_and_equal_scores_stay_equal(data: st.DataObject):
    sizes = st.floats(-30, 30, allow_subnormal=False)
    knots = data.draw(st.lists(sizes, min_size=2, max_size=12, unique=True).map(sorted))
    heights = sorted(data.draw(st.lists(st.floats(0, 1), min_size=len(knots), max_size=len(knots))))
    shares, temperatures = st.sampled_from([0.0, 0.1, 0.3, 1.0]), st.floats(0.005, 1)
    fitted = made(
        knots=tuple(knots), probabilities=tuple(heights), share=data.draw(shares), temperature=data.draw(temperatures)
    )
    drawn = data.draw(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30))
    # Scores side by side, in float32 as the path returns them, and some that land on a knot.
    close = [float(np.nextafter(np.float32(score), np.float32(2))) for score in drawn]
    scores = np.sort(np.float32([*drawn, *close, *(knot * fitted.temperature for knot in knots)]))[::-1]
    found = fitted.of(np.stack([np.append(scores, -np.inf)] * 2), np.array([data.draw(sizes), 0.0]))
    assert (np.diff(found, axis=1) <= 0).all(), "the same order"
    assert (np.diff(found[:, :-1], axis=1)[:, np.diff(scores) == 0] == 0).all(), "equal scores, equal probabilities"
    assert found.min() >= 0 and found.max() <= heights[-1] and (found[:, -1] == 0).all()
    assert (np.diff(found.astype(np.float32), axis=1) <= 0).all(), "and as they are served"


def test_a_curve_rises_is_short_and_promises_neither_0_nor_1():
    random = np.random.default_rng(0)
    values = np.sort(random.random((100, 60)), axis=1)[:, ::-1]
    for hits in (values > 0.5, random.random(values.shape) < 0.3, values < 0.5):
        knots, heights = curve(values, hits, np.ones_like(hits))
        assert (np.diff(knots) > 0).all() and (np.diff(heights) >= 0).all() and len(knots) <= 100
        assert 0 < heights[0] and heights[-1] < 1
    assert len(curve(values, values < 0.5, np.ones_like(hits))[0]) == 2, "the wrong way round: flat, and its ends alone"
    tied = np.round(values, 1)
    knots, heights = curve(tied, tied > 0.5, np.ones_like(hits))
    assert len(knots) <= 21
    same = curve(np.full((60, 10), 0.5), random.random((60, 10)) < 0.5, np.ones((60, 10), dtype=bool))
    assert len(same[0]) == 2 and same[1][0] == same[1][1]


def test_the_temperature_is_that_by_which_the_positives_were_drawn():
    random = np.random.default_rng(0)
    scores = random.normal(0, 0.3, (3000, 50))

    def log_z(temperature: float) -> np.ndarray:
        return np.log(np.exp(scores / temperature).sum(axis=1))

    drawn = np.exp(scores / 0.12 - log_z(0.12)[:, None]).cumsum(axis=1)
    positives = (random.random((3000, 1)) > drawn).sum(axis=1).clip(max=49)
    assert temperature_of(log_z, scores[np.arange(3000), positives]) == pytest.approx(0.12, rel=0.05)


def test_few_lucky_rows_promise_little():
    lucky = np.full((10, 5), 0.9)
    few = thresholds_of(lucky, np.ones((10, 5), dtype=bool))
    assert len(few) == math.floor(100 * 10 / (10 + 1.6448536269514722**2)) == 78, "as ten trials do, not fifty"
    assert set(few) == {0.9}
    many = thresholds_of(np.full((1000, 5), 0.9), np.ones((1000, 5), dtype=bool))
    assert len(many) == 99
    assert thresholds_of(lucky, np.zeros((10, 5), dtype=bool)) == ()


def test_thresholds_rise_with_precision_and_keep_it_on_other_rows():
    fitted, _ = answers(400, 0.0, 2)
    found = thresholds_of(fitted.crossed(0.0), fitted.hits)
    assert list(found) == sorted(found) and len(found) >= 70
    calibration = made(thresholds=(0.1,) * 28 + (0.2, 0.3))
    assert calibration.threshold(0) == 0 and calibration.threshold(0.28) == 0.1
    assert calibration.threshold(0.29) == 0.2, "0.29 · 100 is above 29 by rounding"
    assert calibration.threshold(0.291) == 0.3 and calibration.threshold(0.31) is None
    assert calibration.highest == 0.3


def test_the_lower_bound_is_wilsons():
    from scipy.stats import binomtest

    for right, trials in ((0, 7), (5, 7), (7, 7), (90, 100)):
        expected = binomtest(right, trials).proportion_ci(0.9, method="wilson").low
        assert wilson(np.array([right / trials]), np.array([trials]))[0] == pytest.approx(expected)


def test_what_cannot_be_fitted_is_said():
    watched, _ = answers(60, 0.0, 0)

    def refused(rows: int = 60, **other: np.ndarray) -> str:
        fields = {**vars(watched), **other}
        part = {name: value[:rows] if isinstance(value, np.ndarray) else value for name, value in fields.items()}
        with pytest.raises(InputError) as told:
            fit(Watched(**part))
        return str(told.value)

    assert "49 validation rows with 1960 answers are too few" in refused(49)
    assert "2400 are right" in refused(hits=np.ones_like(watched.hits))
    assert "0 are right" in refused(hits=np.zeros_like(watched.hits))
    assert "same score" in refused(scores=np.zeros_like(watched.scores))


def test_a_file_comes_back_as_it_was_and_a_damaged_one_is_named(tmp_path: Path):
    assert Calibration.read(tmp_path) is None
    made().write(tmp_path)
    assert Calibration.read(tmp_path) == made()
    good = json.loads((tmp_path / FILE).read_text())
    for wrong in ({"share": 2}, {"knots": [0, 0, 1]}, {"probabilities": [0.5, 0.4, 0.6]}, {"knots": [0, 1]}, {"more": 1}):
        (tmp_path / FILE).write_text(json.dumps({**good, **wrong}))
        with pytest.raises(InputError, match=FILE):
            Calibration.read(tmp_path)


def test_the_sum_over_all_labels_is_needed_where_it_has_a_say():
    assert made(share=0).of([[0.1]], None).shape == (1, 1)
    with pytest.raises(ValueError, match="log Z"):
        made().of([[0.1]], None)
