"""A run whose watched rows gain nothing ends on its best weights, also when it was interrupted on the way."""

from __future__ import annotations

import torch

from data import open_format
from dexml.config import load
from training import checkpoint
from training.config import Config, settle
from training.run import Progress, Run, hold_out


def make(tiny_config, out, *settings: str) -> Run:
    """A run that learns fast, and then only overfits: its rate stays where it is."""
    fixed = [f"out={out}", "validation.fraction=0.3", "training.epochs=30", "training.patience=2", "training.rate_scale=3.0"]
    read = load(Config, tiny_config, [*fixed, *settings])
    files = open_format(read.data.path, read.data.format)
    labels, split = files.labels(), files.read("train")
    settled, _ = settle(read, len(split))
    kept, watched = hold_out(settled, split)
    return Run(settled, labels, kept, watched)


def test_a_run_stops_when_the_watched_rows_gain_nothing(tiny_config, tmp_path):
    run, seen = make(tiny_config, tmp_path), []
    weights: dict[int, torch.Tensor] = {}

    def report(now: Progress) -> None:
        if now.validation_seconds is not None:
            seen.append(now.precision_1 + now.precision_3 + now.precision_5)
            weights[now.epoch] = run.model.tower.table.detach().clone()

    assert run.go(report)
    assert run.stopped_early
    best = max(range(len(seen)), key=lambda epoch: seen[epoch]) + 1
    assert run.best_epoch == best == len(seen) - 2
    assert torch.equal(run.model.tower.table, weights[best])


def test_without_patience_it_goes_on_to_the_end(tiny_config, tmp_path):
    run, seen = make(tiny_config, tmp_path, "training.epochs=8"), []
    run.config = run.config.model_copy(update={"training": run.config.training.model_copy(update={"patience": None})})
    run.go(seen.append)
    assert seen[-1].epoch == 8
    assert not run.stopped_early


def test_an_interrupted_run_stops_where_it_would_have(tiny_config, tmp_path):
    whole, cut = make(tiny_config, tmp_path / "whole"), make(tiny_config, tmp_path / "cut")
    whole.go(lambda now: None)
    steps = []
    cut.go(steps.append, lambda: len(steps) >= len(cut.batches) * whole.best_epoch + 1)
    again = make(tiny_config, tmp_path / "cut")
    state = checkpoint.newest(again.config.out)
    assert state is not None
    again.resume(state)
    again.go(lambda now: None)
    assert (again.step, again.best_epoch) == (whole.step, whole.best_epoch)
    for mine, theirs in zip(again.model.tower.parameters(), whole.model.tower.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_refit_ends_after_the_epoch_that_was_best(tiny_config, tmp_path):
    run, seen = make(tiny_config, tmp_path, "validation.fraction=0"), []
    run.stop_after = 3
    run.go(seen.append)
    assert seen[-1].epoch == 3
    assert not run.stopped_early
