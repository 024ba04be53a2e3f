"""Spaces and goals as they are typed: what is read is what was meant, and what cannot be is named."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from dexml.errors import InputError
from training.tuning.goals import SEARCH, Goals
from training.tuning.space import Space
from training.tuning.toml import toml


def test_values_are_toml_words_or_lists_in_a_file(tmp_path: Path):
    (tmp_path / "space.toml").write_text("[loss]\ntemperature = [0.1, 0.05]\n[training]\nbatch = [64]\n", encoding="utf-8")
    space = Space.of(
        ["nprobe=16,1,4", 'factory="IVF8,Flat","Flat"', "tower.name=residual,tokens", str(tmp_path / "space.toml")]
    )
    assert space.axes == {
        "nprobe": (1, 4, 16),  # numbers are a scale
        "factory": ("IVF8,Flat", "Flat"),
        "tower.name": ("residual", "tokens"),
        "loss.temperature": (0.05, 0.1),
        "training.batch": (64,),
    }
    assert len(space) == 24
    place = (1, 0, 1, 1, 0)
    settings = space.settings(place)
    assert settings["nprobe"] == 4 and settings["tower.name"] == "tokens"
    assert space.place({**settings, "more": 1}) == place
    assert space.place({**settings, "nprobe": 5}) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nprobe"], "KEY=VALUE"),
        (["nprobe=1", "nprobe=2"], "nprobe is given twice"),
        (["nprobe=1,1"], "nprobe holds a value twice"),
        (["nprobe="], "nprobe needs a list"),
        (["loss.temperature=0.1,inf"], "not finite"),
        (["loss=[1],[2]"], "numbers, words or booleans"),
        (["missing.toml"], "missing.toml does not exist"),
    ],
)
def test_a_wrong_space_is_named(given: list[str], message: str):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        Space.of(given)


def test_bounds_count_before_the_objective():
    goals = Goals.of(["cost"], ["recall=0.9", "latency=2"], SEARCH)
    good = {"recall": 0.9, "cost": 100.0, "latency": 1.0}
    cheap = {"recall": 0.8, "cost": 1.0, "latency": 1.0}
    slow = {"recall": 0.8, "cost": 1.0, "latency": 4.0}
    assert sorted([slow, cheap, good], key=goals.badness) == [good, cheap, slow]
    assert goals.kept(good) and not goals.kept(cheap)
    assert str(goals) == "least cost, recall ≥ 0.9, latency ≤ 2"
    both = Goals.of(["recall", "cost"], [], SEARCH)
    assert not both.dominated(good, cheap) and not both.dominated(good, good)
    assert both.dominated({**good, "cost": 101.0}, good)
    wrong = [
        (["cost", "cost"], [], "twice"),
        (["costs"], [], "did you mean 'cost'"),
        (["cost"], ["recall"], "NAME=NUMBER"),
        (["cost"], ["recall=nan"], "finite"),
    ]
    for objectives, bounds, message in wrong:
        with pytest.raises(InputError, match=message):
            Goals.of(objectives, bounds, SEARCH)


def test_toml_is_read_back_as_it_was():
    values = {"name": 'a "b"\n\x7fé', "n": 1, "x": 1e-05, "y": -2.5, "on": True, "list": ["a", 1, [2.0]],
              "section": {"odd key": 0.5, "below": {"deep": "C:\\x"}}, "empty": {}}  # fmt: skip
    assert tomllib.loads(toml(values)) == values
