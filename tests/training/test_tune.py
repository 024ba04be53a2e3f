"""`dexml tune` from its front door: what it finds answers so, what it writes is taken, and it goes on where it was stopped."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optuna")

from dexml.bundle import Bundle
from dexml.config import load, read_toml
from dexml.device import faiss_wheel
from index.retriever import Retriever
from training.config import Config

needs_faiss = pytest.mark.skipif(faiss_wheel() is None, reason="no FAISS wheel is installed")
SPACE = ("--space", 'factory="IVF4,Flat","HNSW4"', "--space", "nprobe=1,2,4", "--space", "candidates=3,5,10")
Run = Callable[..., str]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@needs_faiss
def test_a_search_is_tuned_reported_and_kept(tiny_bundle: Path, tmp_path: Path, run: Run):
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    shutil.copytree(tiny_bundle, bundle)
    asked = ("tune", "search", bundle, out, *SPACE, "--fit", "test", "--top-k", 3, "--bound", "recall=1", "--objective", "cost")
    told = run(*asked, "--trials", 18)
    assert "18 of 18 points evaluated" in told
    found = rows(out)
    assert len(found) == 18
    within = [row for row in found if float(row["recall"]) == 1]
    chosen = read_toml(out / "best.toml")
    best = min(float(row["cost"]) for row in within)
    wanted = {"candidates": chosen["rerank"]["candidates"], **{key: chosen["index"][key] for key in ("factory", "nprobe")}}
    taken = next(row for row in within if all(row[key] == str(value) for key, value in wanted.items()))
    assert float(taken["cost"]) == best < max(float(row["cost"]) for row in found)
    of_lists = [row for row in found if row["factory"] == "IVF4,Flat" and row["candidates"] == "5"]
    assert [float(row["cost"]) for row in sorted(of_lists, key=lambda row: int(row["nprobe"]))][-1] == 4 + 10 + 5
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "What mattered" in page and "recall by cost" in page
    assert "published as v000002" in run(*asked, "--trials", 18, "--keep")
    manifest = Bundle.open(bundle).manifest
    assert {"name": manifest.index.name, **manifest.index.options} == chosen["index"]
    retriever = Retriever.open(bundle)
    whole = Retriever.open(bundle, index="exact")
    text = ["sorting of arrays"]
    assert retriever.search(text, 3).rescored == (chosen["rerank"]["candidates"],)
    assert np.array_equal(retriever.search(text, 3).topk.ids, whole.search(text, 3).topk.ids)
    # A structure that is there is tuned without another one being built, and without a space to say how.
    told = run("tune", "search", bundle, tmp_path / "again", "--fit", "test", "--top-k", 3)
    assert "recall 1.0000" in told


@needs_faiss
def test_figures_of_two_objectives_have_a_front(tiny_bundle: Path, tmp_path: Path, run: Run):
    out = tmp_path / "out"
    both = ("--objective", "recall", "--objective", "cost")
    told = run("tune", "search", tiny_bundle, out, *SPACE, *both, "--fit", "test", "--top-k", 3, "--trials", 12)
    assert told.count("not beaten:") >= 2
    last = [line for line in told.splitlines() if line.startswith("not beaten:")][-1].split()
    run("tune", "search", tiny_bundle, out, *SPACE, *both, "--fit", "test", "--top-k", 3, "--trials", 12, "--choose", last[2])
    number = next(row for row in rows(out) if row["evaluation"] == last[2])
    assert str(read_toml(out / "best.toml")["rerank"]["candidates"]) == number["candidates"]


@needs_faiss
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--space", "nprob=1,2"), "did you mean 'nprobe'"),
        (("--space", "nprobe=0,1"), "greater than or equal to 1, got 0"),
        (("--space", "nprobe=1,2"), "index is 'exact', which has nothing to tune"),
        (("--space", 'factory="IVF4,Flat"', "--space", "candidates=1,5"), "candidates must be at least 3"),
        ((*SPACE, "--bound", "recall"), "NAME=NUMBER"),
        ((*SPACE, "--objective", "cost", "--objective", "recall", "--sampler", "tabu"), "tabu goes by one objective"),
        (("--space", 'factory="IVF400,Flat"', "--trials", "2"), "needs at least 400 labels"),
        ((*SPACE, "--bound", "recall=2", "--trials", "3", "--keep"), "nothing evaluated is within the bounds"),
        ((*SPACE, "--trials", "2", "--choose", "7"), "no complete evaluation 7"),
    ],
)
def test_what_is_wrong_with_a_search_is_named(
    tiny_bundle: Path, tmp_path: Path, run: Run, given: tuple[str, ...], message: str
):
    told = run("tune", "search", tiny_bundle, tmp_path / "out", "--fit", "test", "--top-k", 3, *given, fails=True)
    assert message in told


TRAIN = ("--set", "validation.fraction=0.3", "--set", "training.patience=9", "--space", "loss.temperature=0.02,0.06,0.2")


def test_a_training_is_tuned_and_the_best_config_is_one_that_trains(tiny_config: Path, tmp_path: Path, run: Run):
    out = tmp_path / "out"
    asked = ("tune", "train", tiny_config, out, *TRAIN, "--space", "training.rate_scale=0.001,1,2", "--trials")
    told = run(*asked, 5)
    assert f"dexml train {out / 'best.toml'}" in told
    found = rows(out)
    assert len(found) == 5 and (found[0]["loss.temperature"], found[0]["training.rate_scale"]) == ("0.06", "1")
    config = load(Config, out / "best.toml")
    best = max(float(row["P@1"]) for row in found if row["P@1"])
    assert any(
        float(row["P@1"] or -1) == best
        and float(row["loss.temperature"]) == config.loss.options["temperature"]
        and float(row["training.rate_scale"]) == config.training.rate_scale
        for row in found
    )
    assert config.validation.fraction == 0.3
    assert not (out / "running").exists()
    run("train", out / "best.toml", "--set", f"out={tmp_path / 'made'}")
    assert Bundle.open(tmp_path / "made").manifest.temperature == config.loss.options["temperature"]
    assert "going on after 5 evaluations" in run(*asked, 6)
    first = [{key: row[key] for key in row if key not in ("latency", "seconds")} for row in rows(out)[:5]]
    assert first == [{key: row[key] for key in row if key not in ("latency", "seconds")} for row in found]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "say what to search"),
        (("--space", "loss.temprature=1,2"), "did you mean 'temperature'"),
        (("--space", "seed=1,2"), "seed must be the same in all trainings"),
        (("--space", "training.batch=0,2"), "training.batch"),
        (("--space", "training.batch=8,16", "--set", "validation.fraction=0"), "no training row is held out"),
        (("--space", "training.batch=8,16", "--objective", "recall"), "unknown figure 'recall'"),
        (("--space", "training.memory_gib=0.001,0.002", "--set", "validation.fraction=0.3"), "no evaluation came to its end"),
    ],
)
def test_what_is_wrong_with_a_training_is_named(
    tiny_config: Path, tmp_path: Path, run: Run, given: tuple[str, ...], message: str
):
    assert message in run("tune", "train", tiny_config, tmp_path / "out", *given, fails=True)


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(tiny_config: Path, tmp_path: Path, run: Run):
    out = tmp_path / "out"
    asked = ["tune", "train", tiny_config, out, *TRAIN, "--set", "training.epochs=15", "--no-pruning", "--trials", "2"]
    command = [sys.executable, "-m", "dexml", *map(str, asked)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "1/2" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "stopped after 1 evaluations; the same command goes on" in rest
    assert len(rows(out)) == 1 and (out / "report.html").exists()
    before = rows(out)[0]
    run(*asked)
    assert len(rows(out)) == 2 and rows(out)[0] == before
