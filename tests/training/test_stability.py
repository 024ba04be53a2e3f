"""What a number type loses is counted as its own arithmetic loses it, is in every log, and is told once when it matters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dexml.config import load
from dexml.errors import InputError
from training import history
from training.config import Config
from training.run import Progress
from training.stability import BITS, LIMIT, Watch, counted, shares


@pytest.mark.parametrize("name", list(BITS))
def test_what_is_lost_is_what_the_number_type_loses_in_the_sum(name: str):
    number, limit = getattr(torch, name), 2.0 ** -BITS[name]
    for rest, lost in ((0.99 * limit, True), (1.01 * limit, False)):
        total = torch.tensor(1.0, dtype=number) + torch.tensor(rest, dtype=number)
        assert (total == 1) == lost
        assert shares(counted(torch.tensor([rest / (1 + rest)], dtype=torch.float64)))[name] == lost


def test_the_leads_are_those_of_the_paper():
    assert [round(bits * math.log(2), 1) for bits in BITS.values()] == [16.6, 7.6, 5.5]
    pulls = torch.sigmoid(-torch.tensor([1.0, 6.0, 8.0, 17.0]))
    assert shares(counted(pulls)) == {"float32": 0.25, "float16": 0.5, "bfloat16": 0.75}
    assert shares(counted(torch.tensor([math.nan, 1e-9, 1.0]))) == {"float32": 0.5, "float16": 0.5, "bfloat16": 0.5}
    assert shares(counted(torch.tensor([math.nan]))) is None


def test_a_collapse_is_told_once_with_what_to_do(tiny_config: Path, progress: Callable[..., Progress]):
    def step(number: int, share: float) -> Progress:
        return replace(progress(number), collapsed={"float32": share, "float16": 0.5, "bfloat16": 0.75})

    said: list[str] = []
    watch = Watch(load(Config, tiny_config, ["loss.temperature=0.01"]), said.append)
    for now in (progress(1), step(2, LIMIT), step(3, 0.25), step(4, 0.5)):
        watch(now)
    assert said == [
        "softmax collapse at step 3: 25% of the batch's positives have probability 1 in float32 (it would be 50% in float16 "
        "and 75% in bfloat16), and their gradient is 0 or lost beside the others'. Raise loss.temperature, now 0.01, or score "
        "more negatives; where rows have no fixed length, set optimizer.name to 'orthograd'"
    ]


@pytest.mark.parametrize(("temperature", "collapses"), [(0.002, True), (0.06, False)])
def test_every_step_of_a_run_is_measured(run, tiny_config: Path, tmp_path: Path, temperature: float, collapses: bool):
    settings = [f"out={tmp_path}", f"loss.temperature={temperature}", "training.epochs=3"]
    said = run("train", tiny_config, *[part for setting in settings for part in ("--set", setting)])
    assert said.count("softmax collapse at step") == collapses
    told = [line["collapsed"] for line in history.read(tmp_path) if line["kind"] == "step"]
    assert all(0 <= step["float32"] <= step["float16"] <= step["bfloat16"] <= 1 for step in told)
    assert (told[-1]["float32"] > LIMIT) == collapses and len(told) > 3
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Positives whose gradient a number type loses, percent: float32 from" in report


def test_stablemax_is_for_shortlists(run, tiny_config: Path, tuning_config: Path, tmp_path: Path):
    chosen = ["--set", "loss.name=stablemax", "--set", f"out={tmp_path / 'run'}"]
    said = run("train", tiny_config, *chosen, "--set", "loss.temperature=0.9", fails=True)
    assert "'stablemax' cannot tell a positive from 9 negatives" in said and "loss.temperature to 0.5 or less" in said
    run("train", tuning_config, *chosen, "--set", "finetune.negatives=in-batch", "--set", "finetune.rate=1e-3")
    losses = [line["loss"] for line in history.read(tmp_path / "run") if line["kind"] == "step" and line["phase"] == 1]
    assert losses[-1] < losses[0]


def test_stablemax_over_ranks_is_refused():
    from dexml.losses import LOSSES
    from dexml.losses.sharded import ShardedLoss
    from training.world import ALONE

    with pytest.raises(InputError, match="StableMax cannot be spread over ranks"):
        ShardedLoss(LOSSES.build("stablemax"), 0, ALONE)
