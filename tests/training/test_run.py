"""A run is repeatable, resumes bitwise, and measures what it says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from data import open_format
from dexml.config import load
from dexml.types import Split
from training import checkpoint
from training.config import Config, settle
from training.run import Progress, Run, hold_out, rate_factor


def make(config: Path, out: Path, *settings: str) -> tuple[Run, Split]:
    read = load(Config, config, [f"out={out}", *settings])
    files = open_format(read.data.path)
    split = files.read("train")
    settled, _ = settle(read, len(split))
    train, validation = hold_out(settled, split)
    return Run(settled, files.labels(), train, validation), split


def parameters(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in run.model.tower.named_parameters()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def ignore(progress: Progress) -> None: ...


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_config: Path, tmp_path: Path):
    runs = [make(tiny_config, tmp_path, f"seed={seed}")[0] for seed in (1, 1, 2)]
    for run in runs:
        assert run.go(ignore)
    assert equal(parameters(runs[0]), parameters(runs[1]))
    assert not equal(parameters(runs[0]), parameters(runs[2]))


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_resumed_run_ends_with_bitwise_the_same_weights(tiny_config: Path, tmp_path: Path, stop: int):
    whole, _ = make(tiny_config, tmp_path / "whole", "validation.fraction=0.2")
    assert whole.go(ignore)
    cut, _ = make(tiny_config, tmp_path / "cut", "validation.fraction=0.2")

    def pull_the_plug(progress: Progress) -> None:
        cut.interrupt = progress.step == stop

    assert not cut.go(pull_the_plug)
    rest, _ = make(tiny_config, tmp_path / "cut", "validation.fraction=0.2")
    state = checkpoint.newest(tmp_path / "cut")
    assert rest.knows(state)
    rest.resume(state)
    assert rest.step == stop
    assert rest.go(ignore)
    assert equal(parameters(rest), parameters(whole))


def test_a_checkpoint_of_other_data_is_not_known(tiny_config: Path, tmp_path: Path):
    run, split = make(tiny_config, tmp_path)
    run.save()
    assert run.knows(checkpoint.newest(tmp_path))
    fewer = Run(run.config, run.labels, split.take(np.arange(len(split) - 1)), None)
    assert not fewer.knows(checkpoint.newest(tmp_path))


def test_only_the_newest_checkpoint_is_kept_and_a_half_written_one_is_passed_over(tiny_config: Path, tmp_path: Path):
    run, _ = make(tiny_config, tmp_path)
    for step in (1, 2, 3):
        run.step = step
        run.save()
    (tmp_path / "checkpoints" / "step_00000009.123.tmp").mkdir()
    assert checkpoint.newest(tmp_path).facts["step"] == 3
    assert len(list((tmp_path / "checkpoints").glob("step_*"))) == 2


def test_validation_rows_are_not_trained_on_and_are_reported_each_epoch(tiny_config: Path, tmp_path: Path):
    run, split = make(tiny_config, tmp_path, "validation.fraction=0.3", "training.epochs=2")
    assert run.validation is not None and len(run.train) + len(run.validation) == len(split)
    assert not set(run.train.texts) & set(run.validation.texts)
    seen: list[Progress] = []
    assert run.go(seen.append)
    assert seen[0].precision_1 is None
    assert 0 <= (seen[-1].precision_1 or -1) <= 100
    assert seen[-1].step == run.steps == 2 * len(run.batches)


def test_a_label_without_a_training_row_keeps_the_embedding_of_its_text(tiny_config: Path, tmp_path: Path):
    run, split = make(tiny_config, tmp_path)
    without = [row for row in range(len(split)) if 4 not in split.positives.row(row)]
    run = Run(run.config, run.labels, split.take(np.array(without)), None)
    assert 4 not in run.seen
    assert run.go(ignore)
    text = run.model.embed_labels([run.labels.texts[4]])
    assert torch.allclose(run.embeddings()[4], text[0], atol=1e-6)
    trained = run.model.embed_labels([run.labels.texts[5]])
    assert not torch.allclose(run.embeddings()[5], trained[0], atol=1e-4), "a trained label has a free vector"


def test_the_learning_rate_warms_up_and_decays_to_its_end(tiny_config: Path):
    config = load(Config, tiny_config, ["training.warmup=0.1", "training.final_rate=0.02"])
    factors = [rate_factor(step, 100, config) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1
    assert factors[-1] == pytest.approx(0.02 + 0.98 / 90)
    assert all(a >= b for a, b in pairwise(factors[10:]))
