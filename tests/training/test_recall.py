"""Training queries that a bundle keeps: only when asked, weighed on rows that are not among them, and forgotten on demand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from data import open_format
from dexml.bundle import Bundle
from dexml.config import load
from dexml.memory import Memory
from dexml.types import Positives
from index.retriever import Retriever
from training import checkpoint
from training.config import Config, MemorySection, settle
from training.recall import Weighed, remember, weigh, weigh_run
from training.run import Run, hold_out

ALL = MemorySection(queries="all")


def train(run, config: Path, out: Path, *settings: str) -> str:
    chosen = (f"out={out}", "training.epochs=2", *settings)
    return run("train", config, *(word for setting in chosen for word in ("--set", setting)))


def unit(count: int, seed: int) -> torch.Tensor:
    rows = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def test_nothing_is_kept_unless_asked_for_and_no_text_unless_asked_for(
    run, tiny_bundle: Path, tiny_config: Path, tmp_path: Path
):
    plain = Bundle.open(tiny_bundle)
    assert plain.memory is None and not (plain.root / "memory").exists()
    manifest = json.loads((plain.root / "manifest.json").read_text())
    assert "memory" not in manifest, "and a manifest reads as it did before there were memories"
    train(run, tiny_config, tmp_path / "run", "memory.queries=all")
    kept = Bundle.open(tmp_path / "run").memory
    assert kept.texts is None and not any(b"singular" in path.read_bytes() for path in _room(tmp_path / "run"))
    assert Retriever.open(tmp_path / "run").describe()["memory"] == 0


def test_what_is_kept_are_the_training_queries_as_the_model_reads_them(run, tiny_config: Path, tiny_data: Path, tmp_path: Path):
    settings = ("memory.queries=all", "memory.texts=true", "validation.fraction=0.2", "validation.refit=true")
    said = train(run, tiny_config, tmp_path / "run", *settings)
    assert "60 training queries, weight" in said and "on rows held out: P@1" in said
    opened, split = Bundle.open(tmp_path / "run"), open_format(tiny_data).read("train")
    kept, facts = opened.memory, opened.manifest.memory
    assert kept.texts == split.texts and facts.queries == len(split) and facts.texts, "the rows held out too, after a refit"
    assert np.array_equal(kept.positives.indices, split.positives.indices)
    assert torch.allclose(kept.rows, opened.model().embed_queries(split.texts)[0], atol=1e-5)
    assert Retriever.open(tmp_path / "run").describe()["memory"] == len(split)
    again = run(
        "train",
        tiny_config,
        "--if-needed",
        *(word for s in (f"out={tmp_path / 'run'}", "training.epochs=2", *settings) for word in ("--set", s)),
    )
    assert "up to date" in again
    train(run, tiny_config, tmp_path / "run", "memory.queries=20")
    few = Bundle.open(tmp_path / "run")
    assert len(few.memory) == few.manifest.memory.queries == 20
    assert few.manifest.memory.neighbours == 50, "nothing was held out: the published values"


def test_the_rows_that_weigh_are_not_in_the_memory(tiny_config: Path, tmp_path: Path):
    """Labels by lot: a row that found itself would gain all, and others tell nothing."""
    random = np.random.default_rng(0)
    queries, labels = unit(300, 1), unit(50, 2)
    truth = Positives.from_rows([[label] for label in random.integers(0, 50, 300)], 50)
    others = Memory(queries[100:], truth.take(np.arange(100, 300)))
    honest = weigh(others, labels, queries[:100], truth.take(np.arange(100)), 0.05, ALL)
    blind = weigh(Memory(queries, truth), labels, queries[:100], truth.take(np.arange(100)), 0.05, ALL)
    assert blind.figures[0] > 90 and honest.figures[0] < 20

    settled, split = _settled(tiny_config, tmp_path, "memory.queries=all", "validation.fraction=0.2")
    made = Run(settled, open_format(settled.data.path).labels(), *hold_out(settled, split))
    made.go(lambda progress: None)
    memory = remember(made.train, made.query_rows(made.train.texts), settled.memory, 0)
    assert not set(made.validation.texts) & {made.train.texts[row] for row in range(len(memory))}
    watched = made.query_rows(made.validation.texts)
    expected = weigh(memory, made.embeddings(), watched, made.validation.positives, 0.06, settled.memory)
    assert weigh_run(made) == expected


def test_the_choice_gains_and_loses_nothing_at_the_top(tmp_path: Path):
    """Queries in clusters that the labels' own rows know nothing of: the memory finds them."""
    centres = unit(20, 3)
    cluster = np.random.default_rng(4).integers(0, 20, 400)
    queries = torch.nn.functional.normalize(centres[torch.from_numpy(cluster)] + 0.1 * unit(400, 5), dim=1)
    truth = Positives.from_rows([[int(c), 20 + int(c)] for c in cluster], 40)
    memory = Memory(queries[100:], truth.take(np.arange(100, 400)))
    found = weigh(memory, unit(40, 6), queries[:100], truth.take(np.arange(100)), 0.05, ALL)
    assert found.weight > 0 and found.figures[0] > 95 > found.without[0]
    fixed = ALL.model_copy(update={"weight": 0.05, "temperature": 0.03, "neighbours": 7})
    set_by_hand = weigh(memory, unit(40, 6), queries[:100], truth.take(np.arange(100)), 0.05, fixed)
    assert (set_by_hand.weight, set_by_hand.temperature, set_by_hand.neighbours) == (0.05, 0.03, 7)
    perfect = weigh(memory, torch.cat([centres, centres]), queries[:100], truth.take(np.arange(100)), 0.05, ALL)
    assert min(a - b for a, b in zip(perfect.figures[:2], perfect.without[:2], strict=True)) >= 0


def test_a_choice_is_resumed_with_the_refit_that_it_is_for(tiny_config: Path, tmp_path: Path):
    settled, split = _settled(tiny_config, tmp_path, "memory.queries=all")
    labels = open_format(settled.data.path).labels()
    cut = Run(settled, labels, split, None, 2)
    cut.weighed = Weighed(0.5, 0.05, 20, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert not cut.go(lambda progress: None, lambda: cut.step == 3)
    rest = Run(settled, labels, split, None, 2)
    rest.resume(checkpoint.newest(settled.out))
    assert rest.weighed is not None and str(rest.weighed) == str(cut.weighed)
    assert "P@1 1.0 → 4.0" in str(rest.weighed)


def test_a_memory_for_a_bundle_that_is_there_and_its_end(run, tiny_transformer: Path, tiny_data: Path, tmp_path: Path):
    out = tmp_path / "mine"
    run("import", "--model", tiny_transformer, "--labels", tiny_data / "labels.jsonl", "--out", out, "--index", "exact")
    before = Bundle.open(out)
    said = run("memory", out, "--texts")
    assert "on rows held out: P@1" in said and "the bundle is now v000002" in said
    kept = Bundle.open(out)
    assert len(kept.memory) == 60 == len(kept.memory.texts) and kept.manifest.parent.version == "v000001"
    answer = json.loads(run("search", out, "please explain sorting", "-k", 2, "--why", "--json"))
    assert all(0 < len(label["why"]) <= 3 and label["why"][0]["text"] in kept.memory.texts for label in answer)
    run("memory", out, "--queries", 7, "--weight", 0.25)
    few = Bundle.open(out)
    assert len(few.memory) == 7 and few.memory.texts is None and few.manifest.memory.weight == 0.25
    assert not (few.root / "memory" / "texts.jsonl").exists()
    assert "v000004" in run("memory", out, "--remove")
    gone = Bundle.open(out)
    assert gone.memory is None and gone.manifest.files == before.manifest.files
    assert "keeps no training queries" in run("memory", out, "--remove", fails=True)
    run("labels", "delete", out, "svd")
    assert "--compact` first" in run("memory", out, fails=True)
    run("index", out, "--compact")
    run("memory", out, "--fit", "test")
    opened = Bundle.open(out)
    names = [opened.labels.ids[label] for label in opened.memory.positives.row(0)]
    assert names == ["sorting"] and len(opened.labels) == 9 and len(opened.memory) == 60 - 5 + 2 - 2


def test_a_trained_model_is_no_judge_of_the_rows_it_was_trained_on(run, tiny_bundle: Path, tiny_data: Path, tmp_path: Path):
    import shutil

    root = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    assert "weight 0.3, temperature 0.05, 50 neighbours (not chosen on rows of their own)" in run("memory", root)
    assert "on rows held out" in run("memory", root, "--fit", "test")
    other = tmp_path / "other"
    other.mkdir()
    (other / "labels.jsonl").write_text('{"id": "a", "text": "b"}\n')
    (other / "train.jsonl").write_text('{"text": "a", "labels": ["a"]}\n')
    assert "0 of the bundle's 10 labels" in run("memory", root, "--data", other, fails=True)


def _room(path: Path) -> list[Path]:
    return list((Bundle.open(path).root / "memory").iterdir())


def _settled(config: Path, out: Path, *settings: str) -> tuple[Config, object]:
    read = load(Config, config, [f"out={out}", *settings])
    split = open_format(read.data.path).read("train")
    return settle(read, len(split))[0], split
