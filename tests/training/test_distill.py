"""A student learns from a teacher in the loop that every run goes through, and what comes out is a bundle like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data import open_format
from dexml.bundle import Bundle
from dexml.config import load
from dexml.distillation import DISTILLATIONS, Shortlist
from dexml.errors import InputError
from dexml.types import LabelTable, Positives
from index.retriever import Retriever
from training import checkpoint
from training.config import settle
from training.distill import DistillConfig, DistilledRun, is_positive, resolve, with_positives
from training.run import Progress

CONFIG = """
out = "{out}"
[data]
path = "{data}"
[distill]
teacher = "{teacher}"
shortlist = 4
[training]
epochs = 3
batch = 16
"""


@pytest.fixture
def config(tiny_bundle: Path, tiny_data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "student.toml"
    path.write_text(CONFIG.format(out=tmp_path / "student", data=tiny_data, teacher=tiny_bundle), encoding="utf-8")
    return path


def made(config: Path, *settings: str, labels: LabelTable | None = None) -> DistilledRun:
    resolved, teacher = resolve(load(DistillConfig, config, settings))
    files = open_format(resolved.data.path)
    split = files.read("train")
    settled, _ = settle(resolved, len(split))
    assert isinstance(settled, DistillConfig)
    return DistilledRun(settled, labels or files.labels(), split, None, teacher=teacher)


def ignore(progress: Progress) -> None: ...


def test_shortlists_are_the_teachers_best_and_the_rows_own():
    positives = Positives.from_rows([[0, 3], [], [5], [1, 2, 4]], 6)
    best = np.array([[3, 1], [0, 2], [1, 0], [5, 3]])
    wide = with_positives(best, positives)
    assert wide.tolist() == [[3, 1, 0, -1, -1], [0, 2, -1, -1, -1], [1, 0, 5, -1, -1], [5, 3, 1, 2, 4]]
    assert is_positive(wide, positives).tolist() == [[label in positives.row(row) for label in wide[row]] for row in range(4)]


def test_a_step_is_the_hard_loss_and_the_soft_one_on_the_teachers_scores(config: Path, tiny_bundle: Path):
    run = made(config, "tower.name=tokens", "tower.dimension=8", "tower.dropout=0", "distill.hard=0.5", "distill.soft=2")
    rows = np.array([3, 0, 40])
    tower = run.model.tower.eval()
    queries = run.model.embed_queries([run.train.texts[row] for row in rows])[0]
    labels = tower.labels(run.method.label_features(), trained=True).detach()
    bundle = Bundle.open(tiny_bundle)
    asked = bundle.model().embed_queries([run.train.texts[row] for row in rows])[0]
    taught = asked @ bundle.embeddings.T / bundle.manifest.temperature
    temperature, positives = run.config.loss.options["temperature"], run.positives.take(rows)
    truth = torch.from_numpy(positives.matrix().toarray() > 0)
    there = truth.clone().scatter_(1, taught.topk(4, dim=1).indices, True)
    soft = DISTILLATIONS.build("nkd")(queries @ labels.T / temperature, Shortlist(truth, there, taught))
    expected = 2 * soft + 0.5 * run.method.loss(queries, labels, positives)
    assert run.method.backward(rows) == pytest.approx(float(expected), rel=1e-4)


def test_four_bits_end_in_a_bundle_that_answers_and_takes_an_eighth(run, config: Path, tiny_bundle: Path, tmp_path: Path):
    told = run("distill", config, "--set", "distill.bits=4", "--set", "distillation.name=topkld")
    assert "shortlists of 4 labels from a teacher, 4 bits a number" in told
    assert "teacher has seen" in told
    student = Bundle.open(tmp_path / "student")
    for row in student.embeddings:
        assert len(set(row.round(decimals=6).tolist())) <= 15
    sizes = [(path / "encoder" / "tower.safetensors").stat().st_size for path in (student.root, Bundle.open(tiny_bundle).root)]
    assert sizes[0] < sizes[1] / 5
    assert load_file(student.root / "encoder" / "tower.safetensors")["table.codes"].dtype == torch.uint8
    assert "P@1" in run("evaluate", tmp_path / "student", "--json", tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text())["P@1"] >= 90
    assert "svd" in run("search", tmp_path / "student", "singular value decomposition")
    assert "up to date" in run("distill", config, "--if-needed", "--set", "distill.bits=4", "--set", "distillation.name=topkld")


def likeness(run: DistilledRun, bundle: Path) -> float:
    """Return how a student's scores of all labels for the training rows correlate with the teacher's."""
    teacher = Retriever.open(bundle)
    own = run.query_rows(run.train.texts) @ run.embeddings().T
    truth = teacher.model.embed_queries(run.train.texts)[0] @ teacher.bundle.embeddings.T
    return float(torch.corrcoef(torch.stack([own.flatten(), truth.flatten()]))[0, 1])


def test_a_smaller_student_starts_at_the_teacher(config: Path, tiny_bundle: Path):
    small = ("tower.name=tokens", "tower.dimension=8", "tower.start=random")
    assert likeness(made(config, *small), tiny_bundle) > 0.9
    assert likeness(made(config, *small, "distill.start=fresh"), tiny_bundle) < 0.7
    assert likeness(made(config, "distill.start=teacher"), tiny_bundle) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", list(DISTILLATIONS))
def test_a_fresh_student_comes_to_answer_as_the_teacher_does(config: Path, tiny_bundle: Path, name: str):
    small = ("tower.name=tokens", "tower.dimension=8", "tower.start=random", "distill.start=fresh")
    run = made(config, *small, f"distillation.name={name}", "distill.hard=0", "training.epochs=8", "distill.shortlist=10")
    before, losses = likeness(run, tiny_bundle), list[float]()
    assert run.go(lambda progress: losses.append(progress.loss))
    assert losses[-1] < losses[0]
    assert likeness(run, tiny_bundle) > before + 0.03


def test_a_resumed_student_ends_with_bitwise_the_same_weights(config: Path, tmp_path: Path):
    settings = ("distill.bits=3", "distillation.name=kl_top")
    whole = made(config, *settings)
    assert whole.go(ignore)
    cut = made(config, *settings)
    assert not cut.go(ignore, lambda: cut.step == 5)
    rest = made(config, *settings)
    state = checkpoint.newest(tmp_path / "student")
    assert state is not None and rest.knows(state)
    rest.resume(state)
    assert rest.go(ignore)
    assert torch.equal(rest.embeddings(), whole.embeddings())


def test_a_student_alone_needs_no_teacher(config: Path):
    config.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith("teacher")))
    alone = ("distillation.name=uskd", "encoder.name=bag", "tower.name=tokens", "tower.dimension=8", "tower.start=random")
    run = made(config, *alone, "validation.fraction=0")
    losses: list[float] = []
    assert run.go(lambda progress: losses.append(progress.loss)) and losses[-1] < losses[0]
    with pytest.raises(InputError, match=r"distill\.teacher: a bundle is needed, as \[distillation\] 'nkd' reads its scores"):
        made(config)
    with pytest.raises(InputError, match=r"distill\.teacher: a bundle is needed, as something is to be the teacher's"):
        made(config, "distillation.name=uskd")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("distill.bits=5", r"distill\.bits"),
        ("distill.version=abc", r"distill\.version: .* is now at"),
        ("distillation.name=kd", "unknown distillation 'kd'"),
        ("distillation.top=3", "unknown key 'distillation.top'"),
        ("tower.dropout=0", "the teacher's tower is taken as it is"),
        ("finetune.train=full", r"finetune\.train: a distillation trains a tower on frozen features"),
        ("validation.fraction=0.2", "the teacher was trained on rows that would be watched"),
        ("distill.teacher=nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_is_told(config: Path, setting: str, message: str):
    with pytest.raises(InputError, match=message):
        made(config, setting)


def test_a_tower_that_cannot_start_at_the_teacher_is_told(config: Path):
    other = ("encoder.name=bag", "tower.name=tokens", "tower.start=random", "tower.dimension=8")
    with pytest.raises(InputError, match="only a student with the teacher's encoder"):
        made(config, *other, "distill.start=teacher")
    assert made(config, *other, "encoder.bigrams=false").model.encoder.width() > 0, "an encoder of its own, fitted anew"


def test_a_label_that_the_teacher_lacks_is_told(config: Path, tiny_data: Path):
    labels = open_format(tiny_data).labels()
    other = LabelTable(("other", *labels.ids[1:]), labels.texts)
    with pytest.raises(InputError, match="has no label 'other'"):
        made(config, labels=other)


def test_rows_that_the_teacher_held_out_are_watched(run, config: Path, tiny_config: Path, tmp_path: Path):
    held = ("validation.fraction=0.3", "validation.refit=false", f"out={tmp_path / 'careful'}")
    run("train", tiny_config, *[part for setting in held for part in ("--set", setting)])
    of = ("--set", f"distill.teacher={tmp_path / 'careful'}", "--set", "validation.refit=false")
    assert "watched" in run("distill", config, *of)
    assert (tmp_path / "student" / "history.jsonl").read_text().count('"validation"') == 3
    with pytest.raises(InputError, match="watched"):
        made(config, f"distill.teacher={tmp_path / 'careful'}", "validation.fraction=0.2")
