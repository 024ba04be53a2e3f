"""What goes wrong for real: a loss that is no number, a full disk, SIGKILL; each is told in one line and loses nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import open_format
from dexml import versions
from dexml.config import load
from dexml.errors import InputError
from training import checkpoint
from training.config import Config, settle
from training.history import read
from training.run import Progress, Run, hold_out_rows

ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def make(config: Path, out: Path, *settings: str) -> Run:
    read = load(Config, config, [f"out={out}", *settings])
    files = open_format(read.data.path)
    split = files.read("train")
    settled, _ = settle(read, len(split))
    rows, watched = hold_out_rows(settled, split)
    return Run(settled, files.labels(), split.take(rows), split.take(watched) if len(watched) else None, numbers=rows)


def ignore(progress: Progress) -> None: ...


def test_a_loss_that_is_no_number_names_step_rows_and_the_last_good_checkpoint(
    tiny_config: Path, tiny_data: Path, tmp_path: Path
):
    settings = ["validation.fraction=0.3", "training.rate_scale=1e38"]
    run = make(tiny_config, tmp_path, *settings)
    with pytest.raises(InputError) as told:
        run.go(ignore)
    step = run.step + 1
    assert f"of step {step} is nan" in str(told.value) and "no checkpoint was taken yet" in str(told.value)
    fault = json.loads((tmp_path / "non_finite.json").read_text())
    texts = open_format(tiny_data).read("train").texts
    assert fault["step"] == step and len(fault["batch"]) <= 16
    assert all(texts[entry["row"]] == entry["text"] for entry in fault["batch"]), "rows are those of the file"
    assert f"its batch is rows {fault['batch'][0]['row']}, " in str(told.value)

    again = make(tiny_config, tmp_path, *settings)
    again.save()
    with pytest.raises(InputError, match=r"the last good checkpoint is .*phase_1_step_00000000"):
        again.go(ignore)


def test_a_gradient_that_is_no_number_stops_before_it_is_taken(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = make(tiny_config, tmp_path)
    before = {name: value.detach().clone() for name, value in run.method.trained.items()}
    backward = run.method.backward

    def poisoned(rows: np.ndarray) -> float:
        value = backward(rows)
        next(iter(run.method.trained.values())).grad[0, 0] = float("inf")
        return value

    monkeypatch.setattr(run.method, "backward", poisoned)
    with pytest.raises(InputError, match="the gradient norm of step 1 is inf"):
        run.go(ignore)
    assert all((value == before[name]).all() for name, value in run.method.trained.items())


def test_a_data_set_of_another_size_is_refused_by_its_numbers(tiny_config: Path, tmp_path: Path):
    run = make(tiny_config, tmp_path)
    run.save()
    state = checkpoint.newest(tmp_path)
    assert state is not None
    fewer = Run(run.config, run.labels, run.train.take(np.arange(50)), None)
    assert not fewer.knows(state)
    assert fewer.difference(state) == "training rows 60, now 50"
    changed = make(tiny_config, tmp_path, "training.epochs=5", "training.weight_decay=0.1")
    assert changed.difference(state) == "training.epochs 6, now 5; training.weight_decay 0.01, now 0.1"
    texts = tuple(f"{text}!" for text in run.train.texts)
    other = Run(run.config, run.labels, type(run.train)(texts, run.train.positives), None)
    assert not other.knows(state) and "other texts or labels" in other.difference(state)


def start(config: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "dexml",
        "train",
        str(config),
        "--set",
        f"out={out}",
        "--set",
        "training.epochs=3000",
        *more,
    ]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ONE_THREAD)


OFTEN = ("--set", "training.checkpoint_seconds=0.05")


def wait_for_checkpoint(out: Path, process: subprocess.Popen[str]) -> None:
    while checkpoint.last(out) is None:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=100)
    return process.returncode, errors


@pytest.fixture
def small_disk(tmp_path: Path):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_and_a_resumed_run_goes_on(tiny_config: Path, small_disk: Path):
    out = small_disk / "run"
    process = start(tiny_config, out, *OFTEN)
    wait_for_checkpoint(out, process)
    with (small_disk / "ballast").open("wb", buffering=0) as ballast:
        try:
            while process.poll() is None:
                ballast.write(bytes(4096))
        except OSError:
            pass
        code, errors = ended(process)
    last = errors.strip().splitlines()[-1]
    assert code == 2 and last.startswith("dexml: ") and "No space left on device" in last, errors
    assert "the last good checkpoint is " in last and "--resume" in last and "Traceback" not in errors
    state = checkpoint.newest(out)  # every checksum is compared
    assert state is not None and str(checkpoint.last(out)) in last
    assert [line["step"] for line in read(out)] == list(range(1, len(read(out)) + 1)), "every line is whole"

    (small_disk / "ballast").unlink()
    process = start(tiny_config, out, "--resume", "--set", "training.checkpoint_seconds=100")
    assert process.stderr is not None
    said = ""
    while "\nepoch " not in said:
        said += (line := process.stderr.readline())
        assert line, said
    process.send_signal(signal.SIGTERM)
    code, errors = ended(process)
    assert code == 130 and f"resumed at step {state.facts['step']} of" in said, said + errors
    assert versions.current(out / "bundle")[1].training.step > state.facts["step"]


def test_a_file_that_may_grow_no_further_leaves_the_last_checkpoint(tiny_config: Path, tmp_path: Path):
    run = make(tiny_config, tmp_path, "training.epochs=3000")
    run.step = 1
    run.save()
    kept = checkpoint.last(tmp_path)
    assert kept is not None
    allowed = (kept / "parameters.safetensors").stat().st_size // 2
    before, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        run.step = 2
        with pytest.raises(InputError, match=r"cannot be written: .*; the last good checkpoint is .*step_00000001"):
            run.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert checkpoint.last(tmp_path) == kept and checkpoint.newest(tmp_path) is not None
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [kept.name]


def test_a_second_checkpoint_of_one_step_never_leaves_none(tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make(tiny_config, tmp_path)
    run.step = 3
    run.save()
    rename, renamed = os.rename, []

    def dies(old: Path, new: Path) -> None:
        if renamed:
            raise KeyboardInterrupt
        renamed.append(new)
        rename(old, new)

    monkeypatch.setattr(os, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        run.save()
    monkeypatch.undo()
    state = checkpoint.newest(tmp_path)
    assert state is not None and state.facts["step"] == 3
    run.save()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["phase_1_step_00000003"]


def test_sigkill_at_random_steps_and_in_both_trainings_ends_with_the_same_bytes():
    script = ROOT / "benchmarks" / "kill_resume.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "2", "--epochs", "8", "--no-result"],
        capture_output=True,
        text=True,
        env=ONE_THREAD,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] == 2 and result["same"] and result["history_same"], result
