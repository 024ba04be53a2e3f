"""Every published config is one that training takes."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data import open_format
from dexml.config import load
from dexml.distillation import DISTILLATIONS
from dexml.towers import TOWERS
from training.config import Config, check, settle
from training.distill import DistillConfig

ROOT = Path(__file__).parents[2]
STUDENTS = [ROOT / "training" / "configs" / f"{name}.toml" for name in ("distill", "quantize")]
FILES = sorted(set((ROOT / "training" / "configs").glob("*.toml")) - set(STUDENTS))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_published_config_passes_every_check(file):
    config = load(Config, file, ["data.path=anywhere"])
    check(config)
    settled, _ = settle(config, 20_000, ["a text"])
    assert settled.encoder.name != "auto"


@pytest.mark.parametrize("file", STUDENTS, ids=[file.stem for file in STUDENTS])
def test_the_config_of_a_student_needs_its_teacher_alone(file):
    config = load(DistillConfig, file, ["data.path=anywhere"])
    assert config.encoder.name == "teacher"
    assert config.tower.name == "teacher" or TOWERS.options(config.tower.name, config.tower.options)
    assert DISTILLATIONS.options(config.distillation.name, config.distillation.options)


@pytest.mark.parametrize("name", ["eurlex4k", "amazontitles131k", "wikipedia500k", "amazontitles1300k"])
def test_a_published_recipe_is_a_full_fine_tune_over_all_labels(name):
    config = load(Config, ROOT / "training" / "configs" / f"{name}.toml", ["data.path=anywhere"])
    assert (config.finetune.train, config.finetune.negatives) == ("full", "all")
    assert config.loss.options == {"positives": "one", "temperature": 0.05}
    assert (config.training.epochs, config.training.warmup, config.training.final_rate) == (100, 0.1, 0.0)
    assert config.validation.fraction == 0 and not config.training.free_vectors


def test_the_published_sets_have_their_propensities():
    """METHODS section 4: Wikipedia 0.5, 0.4; Amazon 0.6, 2.6; EURLex 0.55, 1.5."""
    found = {file.stem: load(Config, file, ["data.path=anywhere"]).data.propensity for file in FILES}
    assert found["wikipedia500k"] == (0.5, 0.4)
    assert found["amazontitles131k"] == found["amazontitles1300k"] == (0.6, 2.6)
    assert found["eurlex4k"] == (0.55, 1.5)


def test_the_guides_converter_makes_a_data_set_that_we_read(tmp_path):
    """docs/reproduce.md: the repository's raw files, an empty text and a row without labels among them, into our layout."""
    rows = {
        "lbl": [{"uid": "a", "title": "first\u2028label"}, {"uid": "b", "title": "second"}, {"uid": "c", "title": "third"}],
        "trn": [
            {"uid": "1", "title": " one\ntext ", "content": "more", "target_ind": [2, 0], "target_rel": [1.0, 1.0]},
            {"uid": "2", "title": "", "content": "", "target_ind": [], "target_rel": []},
        ],
        "tst": [{"uid": "3", "title": "naïve ☃", "content": None, "target_ind": [1], "target_rel": [1.0]}],
    }
    (tmp_path / "source").mkdir()
    for name, entries in rows.items():
        with gzip.open(tmp_path / "source" / f"{name}.json.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
    guide = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    (script,) = [block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "xc_to_dexml.py" in block]
    (tmp_path / "xc_to_dexml.py").write_text(script, encoding="utf-8")
    target = tmp_path / "target"
    subprocess.run(
        [sys.executable, tmp_path / "xc_to_dexml.py", tmp_path / "source", target, "title", "content"], check=True, timeout=120
    )
    (target / "filter_labels_test.txt").write_text("0 2\n")
    files = open_format(target)
    train, test = files.read("train"), files.read("test")
    assert files.labels().texts == ("first label", "second", "third")
    assert train.texts == ("one text more", "-") and test.texts == ("naïve ☃",)
    assert [train.positives.row(row).tolist() for row in range(2)] == [[0, 2], []]
    assert test.positives.row(0).tolist() == [1] and test.excluded is not None and test.excluded.row(0).tolist() == [2]
