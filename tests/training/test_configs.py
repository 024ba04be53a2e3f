"""Every published config is one that training takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dexml.config import load
from training.config import Config, check, settle

FILES = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_published_config_passes_every_check(file):
    config = load(Config, file, ["data.path=anywhere"])
    check(config)
    settled, _ = settle(config, 20_000, ["a text"])
    assert settled.encoder.name != "auto"


def test_the_published_sets_have_their_propensities():
    """METHODS section 4: Wikipedia 0.5, 0.4; Amazon 0.6, 2.6; EURLex 0.55, 1.5."""
    found = {file.stem: load(Config, file, ["data.path=anywhere"]).data.propensity for file in FILES}
    assert found["wikipedia500k"] == (0.5, 0.4)
    assert found["amazontitles131k"] == found["amazontitles1300k"] == (0.6, 2.6)
    assert found["eurlex4k"] == (0.55, 1.5)
