"""Ranks that Ray Train starts: one is killed, all go on from the last checkpoint, and end where one process does."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data import open_format
from dexml import versions
from dexml.config import load
from dexml.errors import InputError
from training import checkpoint
from training.config import Config, settle
from training.follow import check_ranks
from training.launch import launch
from training.run import Run, hold_out

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra dexml[ray] is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
SETTINGS = ["validation.fraction=0.2", "validation.refit=false", "training.patience=1000", "loss.products=float32"]
EPOCHS = "training.epochs=100"


def ranks() -> list[int]:
    """Return the processes below this one that Ray Train runs a rank in."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = []
    for process in parents:
        above = process
        while above in parents and above != os.getpid():
            above = parents[above]
        try:
            line = (Path("/proc") / str(process) / "cmdline").read_bytes()
        except OSError:
            continue
        if above == os.getpid() and line.startswith(b"ray::RayTrainWorker"):
            found.append(process)
    return sorted(found)


def test_a_killed_rank_is_started_again_and_the_end_is_that_of_one_process(ray_cluster: Any, tiny_config: Path, tmp_path: Path):
    node = ray_cluster.add_node(num_cpus=1)
    ray_cluster.wait_for_nodes()
    out = tmp_path / "out"
    killed: list[int] = []

    def kill() -> None:
        while checkpoint.last(out) is None:
            time.sleep(0.01)
        killed.append(ranks()[-1])
        os.kill(killed[0], signal.SIGKILL)

    watching = threading.Thread(target=kill, daemon=True)
    watching.start()
    settings = [*SETTINGS, EPOCHS, f"out={out}", "training.checkpoint_seconds=0.05"]
    launch(tiny_config, settings, resume=False, if_needed=False, workers=2, address=None)
    assert len(killed) == 1
    ray_cluster.remove_node(node)

    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    sessions = json.loads((out / "run.json").read_text())["sessions"]
    assert len(sessions) == 2 and sessions[1]["after"][1] > 0
    read = load(Config, tiny_config, [*SETTINGS, EPOCHS, f"out={tmp_path / 'alone'}"])
    files = open_format(read.data.path)
    split = files.read("train")
    settled, _ = settle(read, len(split))
    alone = Run(settled, files.labels(), *hold_out(settled, split))
    assert alone.go(lambda now: None)
    assert [line["step"] for line in history if line["kind"] == "step"] == list(range(1, alone.steps + 1))
    rows = load_file(versions.current(out / "bundle")[0] / "embeddings.safetensors")["embeddings"]
    torch.testing.assert_close(rows, alone.embeddings(), atol=1e-4, rtol=0)
    assert sorted(path.name for path in out.iterdir()) == ["bundle", "history.jsonl", "report.html", "run.json", "tensorboard"]


def test_what_is_wrong_is_told_once(ray_cluster: Any, tiny_config: Path, tmp_path: Path):
    def start(*settings: str, resume: bool = False) -> None:
        launch(tiny_config, [f"out={tmp_path / 'out'}", *settings], resume, if_needed=False, workers=1, address=None)

    with pytest.raises(InputError, match=r"data: the folder .*/none does not exist"):
        start(f"data.path={tmp_path / 'none'}")
    with pytest.raises(InputError, match=r"--resume: .* holds no checkpoint"):
        start(resume=True)
    tuned = load(Config, tiny_config, ["finetune.train=full"])
    with pytest.raises(InputError, match=r"finetune\.train: 'full' runs in one process; over 2 ranks"):
        check_ranks(tuned, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no data set of a known format"):  # a rank says so, and no other tries
        start(f"data.path={tmp_path / 'empty'}")
    assert list((tmp_path / "out").iterdir()) == []
