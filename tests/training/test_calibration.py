"""A bundle's calibration: fitted on rows that nothing has seen, of what the path returns, kept, measured and forgotten."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dexml.bundle import Bundle
from dexml.calibration import Calibration, fit
from dexml.manifest import MemoryFacts
from dexml.memory import Memory
from dexml.types import Positives, Split
from training import calibration as of
from training.calibration import watch

HELD_OUT = (
    "validation.fraction=0.9",
    "validation.refit=true",
    "training.epochs=2",
)  # 54 of the 60 rows, of which the model knows a word of most


def unit(count: int, seed: int) -> torch.Tensor:
    rows = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def near(labels: torch.Tensor, owners: np.ndarray, noise: float, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(labels[torch.from_numpy(owners)] + noise * unit(len(owners), seed), dim=1)


def problem(memory: bool) -> tuple[of.Path, torch.Tensor, Split]:
    """200 queries near one label of 60, with another beside it; and a memory of 100 others."""
    labels = unit(60, 0)
    owners = np.random.default_rng(0).integers(0, 60, 300)
    queries = near(labels, owners, 1.2, 1)
    truth = Positives.from_rows([sorted({int(owner), (int(owner) + 1) % 60}) for owner in owners], 60)
    kept = Memory(queries[200:], truth.take(np.arange(200, 300))) if memory else None
    facts = MemoryFacts(queries=100, texts=False, weight=2, temperature=0.05, neighbours=10)
    split = Split(tuple(f"text {number}" for number in range(200)), truth.take(np.arange(200)))
    return of.Path.over(labels, kept, facts, 0.1), queries[:200], split


@pytest.mark.parametrize("memory", [False, True])
def test_what_is_fitted_are_the_scores_that_are_returned(memory: bool):
    path, queries, split = problem(memory)
    found = path.ask(queries, 0.07)
    assert (path.recall is not None) == memory and found.ids.shape == (200, 60), "all labels are answered"
    scores = np.full((200, 60), np.nan)
    np.put_along_axis(scores, found.ids.numpy(), found.scores.double().numpy(), axis=1)
    positives = [scores[row, split.positives.row(row)].mean() for row in range(200)]
    assert path.mean_positive(queries, split) == pytest.approx(positives, abs=1e-5)
    assert found.log_z.numpy() == pytest.approx(np.log(np.exp(scores / 0.07).sum(axis=1)), abs=1e-4)
    fitted = fit(watch(path, queries, split, 0.1))
    assert fitted.ece[1] < fitted.ece[0] and fitted.rows == 200


def test_rows_of_no_known_word_excluded_pairs_and_rows_without_labels(recwarn: pytest.WarningsRecorder):
    path, queries, split = problem(memory=False)
    queries = queries.clone()
    queries[7] = 0
    rows = [[] if row == 3 else split.positives.row(row).tolist() for row in range(200)]
    gone = [[int(label)] for label in path.ask(queries, 0.1).ids[:, 0]]
    watched = watch(path, queries, Split(split.texts, Positives.from_rows(rows, 60), Positives.from_rows(gone, 60)), 0.1)
    assert len(watched.scores) == 199, "the row of which no word is known"
    assert np.isneginf(watched.scores[:, 0]).all() and not watched.hits[:, 0].any() and np.isnan(watched.softmax[:, 0]).all()
    assert not watched.hits[3].any() and np.isfinite(watched.temperature)
    assert len({int(fold) for fold in watched.folds}) == 5


def test_rows_with_the_same_labels_are_left_out_together():
    path, queries, split = problem(memory=False)
    folds = watch(path, queries, split, 0.1).folds
    for label in range(60):
        same = [row for row in range(200) if split.positives.row(row).tolist() == [label, label + 1]]
        assert len({int(folds[row]) for row in same}) <= 1


def test_a_training_calibrates_and_the_command_finds_the_same_again(run, tiny_config: Path, tmp_path: Path):
    out = tmp_path / "run"
    words = [word for setting in (f"out={out}", "memory.queries=all", *HELD_OUT) for word in ("--set", setting)]
    said = run("train", tiny_config, *words)
    assert re.search(r"calibrated on 5\d rows held out: ECE@5", said), said
    kept = Bundle.open(out).calibration
    assert isinstance(kept, Calibration) and 50 <= kept.rows <= 54 and kept.depth == 10
    again = run("calibrate", out)
    assert "isotonic in the log-softmax" in again and "the bundle is now v000002" in again
    found = Bundle.open(out).calibration
    assert found.share == kept.share and found.knots == pytest.approx(kept.knots, abs=1e-3)
    assert found.probabilities == pytest.approx(kept.probabilities, abs=1e-2), "of the watched run, not of the refit"
    told = run("evaluate", out)
    assert "calibrated" in told and "ECE@5" in told
    assert "no calibration is kept" in run("calibrate", out, "--remove")
    assert Bundle.open(out).calibration is None and "has no calibration" in run("calibrate", out, "--remove", fails=True)
    run("index", out, "--activate", "v000002")
    assert "the calibration was fitted to other answers and is gone" in run("memory", out)
    assert Bundle.open(out).calibration is None


def test_a_bundle_without_one_is_as_it_was_and_says_what_is_missing(run, tiny_bundle: Path, tiny_data: Path, tmp_path: Path):
    root = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    assert not (Bundle.open(root).root / "calibration.json").exists()
    assert "calibrated" not in run("evaluate", root)
    assert "held no rows out" in run("calibrate", root, fails=True)
    assert "holds the rows of train" in run("calibrate", root, "--fit", "train", fails=True)
    assert "10 validation rows with 100 answers are too few" in run("calibrate", root, "--fit", "test", fails=True)


def test_an_imported_model_is_calibrated_on_rows_held_out_of_any(run, tiny_transformer: Path, tiny_data: Path, tmp_path: Path):
    out = tmp_path / "mine"
    run("import", "--model", tiny_transformer, "--labels", tiny_data / "labels.jsonl", "--out", out, "--index", "exact")
    said = run("calibrate", out, "--data", tiny_data, "--fit", "train")
    assert "60 rows, their first 5 answers" in said and Bundle.open(out).calibration.rows == 60
    assert "are too few" in run("calibrate", out, "--data", tiny_data, fails=True)
