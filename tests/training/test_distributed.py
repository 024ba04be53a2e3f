"""A training over several processes, as torchrun starts them, is the training of one; a lost rank ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data import open_format
from dexml import versions
from dexml.bundle import Bundle
from dexml.config import load
from dexml.errors import InputError
from training import checkpoint, follow
from training.config import Config, settle
from training.run import Progress, Run, hold_out
from training.sharded import ShardedFeatures
from training.world import ALONE, World, join

ROOT = Path(__file__).parents[2]
SETTINGS = ["validation.fraction=0.2", "validation.refit=false", "training.patience=1000", "loss.products=float32"]
SECONDS = 120


def make(config: Path, out: Path, *settings: str, world: World = ALONE) -> Run:
    read = load(Config, config, [*SETTINGS, f"out={out}", *settings])
    files = open_format(read.data.path)
    split = files.read("train")
    settled, _ = settle(read, len(split))
    return Run(settled, files.labels(), *hold_out(settled, split), world=world)


def torchrun(ranks: int, config: Path, out: Path, *settings: str, resume: bool = False) -> subprocess.Popen[str]:
    chosen = [word for setting in (*SETTINGS, f"out={out}", *settings) for word in ("--set", setting)]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen(
        [*start, "-m", "dexml", "train", str(config), *chosen, *(["--resume"] if resume else [])],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rank_of(parent: int, rank: int) -> int:
    """Return the process that torchrun started as a rank."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            above = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if above == parent and f"RANK={rank}".encode() in (place / "environ").read_bytes().split(b"\0"):
                return int(place.name)
        except OSError:  # it ended meanwhile, or is another user's
            continue
    raise AssertionError(f"torchrun has no rank {rank}")


def test_four_ranks_go_on_from_one_and_end_where_one_does(tiny_config: Path, tmp_path: Path):
    whole, precisions, losses, collapsed = make(tiny_config, tmp_path / "whole"), [], [], []

    def note(now: Progress) -> None:
        losses.append(now.loss)
        collapsed.append(now.collapsed)
        if now.validation_seconds is not None:
            precisions.append([now.precision_1, now.precision_3, now.precision_5])

    assert whole.go(note)
    cut = make(tiny_config, tmp_path / "cut")
    assert not cut.go(lambda now: None, lambda: cut.step == 3)

    started = torchrun(4, tiny_config, tmp_path / "cut", resume=True)
    said, _ = started.communicate(timeout=SECONDS)
    assert started.returncode == 0, said
    assert "labels spread over 4 ranks" in said and "resumed at step 3" in said
    rows = load_file(versions.current(tmp_path / "cut" / "bundle")[0] / "embeddings.safetensors")["embeddings"]
    torch.testing.assert_close(rows, whole.embeddings(), atol=1e-5, rtol=0)
    history = [json.loads(line) for line in (tmp_path / "cut" / "history.jsonl").read_text().splitlines()]
    steps = [line for line in history if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(4, whole.steps + 1))  # by one rank, once
    assert [line["loss"] for line in steps] == pytest.approx(losses[3:], rel=1e-3)
    assert [line["collapsed"] for line in steps] == [pytest.approx(shares, abs=0.03) for shares in collapsed[3:]]
    assert any(line["collapsed"]["bfloat16"] > 0 for line in steps)
    validated = [[line["P@1"], line["P@3"], line["P@5"]] for line in history if line["kind"] == "validation"]
    assert validated == precisions[1:]


def test_accelerate_launches_the_same_ranks_which_project_gradients_of_whole_tensors(tiny_config: Path, tmp_path: Path):
    settings = ("training.epochs=2", "optimizer.name=orthograd")
    chosen = [word for setting in (*SETTINGS, f"out={tmp_path / 'two'}", *settings) for word in ("--set", setting)]
    # --multi_gpu is accelerate's word for ranks on one machine; without a GPU they are processes on the CPU.
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m", "dexml", "train", str(tiny_config), *chosen],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "labels spread over 2 ranks" in done.stderr
    alone = make(tiny_config, tmp_path / "one", *settings)
    assert alone.go(lambda now: None)
    rows = load_file(versions.current(tmp_path / "two" / "bundle")[0] / "embeddings.safetensors")["embeddings"]
    torch.testing.assert_close(rows, alone.embeddings(), atol=1e-5, rtol=0)


def test_a_killed_rank_ends_the_job_and_its_checkpoint_goes_on_in_one_process(tiny_config: Path, tmp_path: Path):
    out, settings = tmp_path / "out", ("training.epochs=4000", "training.checkpoint_seconds=0.01")
    started = torchrun(2, tiny_config, out, *settings)
    until = time.monotonic() + SECONDS
    while checkpoint.last(out) is None:
        assert started.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    os.kill(rank_of(started.pid, 1), signal.SIGKILL)
    said, _ = started.communicate(timeout=60)
    assert started.returncode != 0 and "rank 0 of 2: another rank is gone" in said, said

    state = checkpoint.newest(out)
    assert state is not None
    alone = make(tiny_config, tmp_path / "alone", *settings)
    assert alone.knows(state)
    assert not alone.go(lambda now: None, lambda: alone.step == state.facts["step"])
    same = checkpoint.newest(tmp_path / "alone")
    assert same is not None
    for found, wanted in ((state.parameters, same.parameters), (state.optimizer, same.optimizer), (state.extra, same.extra)):
        assert found.keys() == wanted.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, wanted[name], atol=1e-4, rtol=1e-3)
    assert torch.equal(state.random, same.random)
    rest = make(tiny_config, out, *settings)
    rest.resume(state)
    assert not rest.go(lambda now: None, lambda: rest.step == state.facts["step"] + 2)


def test_a_refit_of_two_ranks_keeps_what_the_watched_run_found_of_the_training_queries(tiny_config: Path, tmp_path: Path):
    done = torchrun(2, tiny_config, tmp_path / "run", "validation.refit=true", "memory.queries=all", "training.epochs=2")
    said, _ = done.communicate(timeout=SECONDS)
    assert done.returncode == 0, said
    assert "60 training queries" in said and "on rows held out: P@1" in said
    assert len(Bundle.open(tmp_path / "run").memory) == 60


class Silent(World):
    """A rank whose other ranks add nothing: what it computes by itself."""

    def _together(self, call: object) -> None: ...


def test_the_shares_of_all_ranks_are_all_labels():
    for count, size in ((10, 1), (10, 4), (7, 3), (3, 3)):
        shares = [World(rank, size).share(count) for rank in range(size)]
        assert [number for share in shares for number in range(count)[share]] == list(range(count))
        assert max(share.stop - share.start for share in shares) - min(share.stop - share.start for share in shares) <= 1


def test_a_rank_holds_its_share_of_the_labels_and_takes_its_part_of_a_checkpoint(tiny_config: Path, tmp_path: Path):
    alone = make(tiny_config, tmp_path)
    alone.save()
    state = checkpoint.newest(tmp_path)
    assert state is not None
    run = make(tiny_config, tmp_path, world=Silent(1, 4))
    assert isinstance(run.method, ShardedFeatures)
    share = run.world.share(len(run.seen))
    assert 0 < share.start < share.stop < len(run.seen)
    assert run.model.tower.free is not None and len(run.model.tower.free) == share.stop - share.start
    part = run.method.part(
        {"free/exp_avg": torch.arange(10.0), "best.free": torch.arange(10.0), "free/step": torch.tensor(4.0)}
    )
    assert part["free/exp_avg"].tolist() == part["best.free"].tolist() == list(range(10))[share]
    assert part["free/step"] == 4


def test_what_several_ranks_cannot_do_is_refused(tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="10 trained labels are too few for 11 ranks"):
        make(tiny_config, tmp_path, "validation.fraction=0", world=Silent(0, 11))
    with pytest.raises(InputError, match="MASTER_ADDR is not set"):
        join(5, {"WORLD_SIZE": "2", "RANK": "0"})
    assert join(5, {}) is join(5, {"WORLD_SIZE": "1", "RANK": "0"}) is ALONE
    monkeypatch.setattr(follow, "join_ranks", lambda seconds: World(0, 2))
    tuned = load(Config, tiny_config, ["encoder.name=transformer", "tower.name=residual", "finetune.train=full"])
    with pytest.raises(InputError, match=r"finetune\.train: 'full' runs in one process"):
        follow.join(tuned)
