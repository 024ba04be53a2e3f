"""A run is repeatable, resumes bitwise, and measures what it says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from data import open_format
from dexml.config import load
from dexml.errors import InputError
from dexml.types import LabelTable, Split
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

    assert not cut.go(ignore, lambda: cut.step == stop)
    rest, _ = make(tiny_config, tmp_path / "cut", "validation.fraction=0.2")
    state = checkpoint.newest(tmp_path / "cut")
    assert state is not None and rest.knows(state)
    rest.resume(state)
    assert rest.step == stop
    assert rest.go(ignore)
    assert equal(parameters(rest), parameters(whole))


def test_a_checkpoint_of_other_data_is_not_known(tiny_config: Path, tmp_path: Path):
    run, split = make(tiny_config, tmp_path)
    run.save()
    state = checkpoint.newest(tmp_path)
    assert state is not None and run.knows(state)
    assert not Run(run.config, run.labels, split.take(np.arange(len(split) - 1)), None).knows(state)
    other_texts = LabelTable(run.labels.ids, tuple(f"{text} really" for text in run.labels.texts))
    assert not Run(run.config, other_texts, split, None).knows(state)


def saved(out: Path) -> tuple[int, int]:
    state = checkpoint.newest(out)
    assert state is not None
    return state.facts["phase"], state.facts["step"]


def test_only_the_last_checkpoint_is_kept_and_a_half_written_one_is_passed_over(tiny_config: Path, tmp_path: Path):
    run, _ = make(tiny_config, tmp_path)
    assert checkpoint.newest(tmp_path) is None
    for phase, step in ((1, 2), (1, 9), (2, 1), (2, 3)):
        run.phase, run.step = phase, step
        run.save()
        assert saved(tmp_path) == (phase, step), "the refit's first step is newer than the watched run's last"
        assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    (tmp_path / "checkpoints" / "phase_2_step_00000009.tmp").mkdir()
    assert saved(tmp_path) == (2, 3)


@pytest.mark.parametrize("name", ["parameters.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused(tiny_config: Path, tmp_path: Path, name: str):
    run, _ = make(tiny_config, tmp_path)
    run.save()
    path = next((tmp_path / "checkpoints").glob(f"*/{name}"))
    content = path.read_bytes()
    if name == "state.json":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"changed|damaged"):
        checkpoint.newest(tmp_path)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tiny_config: Path, tmp_path: Path):
    run, _ = make(tiny_config, tmp_path)
    run.step = 1
    run.save()
    (tmp_path / "checkpoints" / "phase_1_step_00000002").write_text("a file where a folder should be")
    run.step = 2
    with pytest.raises(InputError, match="cannot be written"):
        run.save()
    assert saved(tmp_path) == (1, 1)


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
