"""Labels that stand still: fixed codes, and the index of a bundle whose queries are tuned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dexml.bundle import Bundle
from dexml.config import load
from dexml.heads.equiangular import largest
from dexml.losses import LOSSES
from training.config import Config
from training.run import Run


@pytest.fixture
def labelled(tiny_data: Path, tmp_path: Path) -> Path:
    """The ten labels without texts that say anything."""
    root = tmp_path / "data"
    root.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (root / name).write_text((tiny_data / name).read_text())
    ids = [json.loads(line)["id"] for line in (tiny_data / "labels.jsonl").read_text().splitlines()]
    (root / "labels.jsonl").write_text("".join(json.dumps({"id": id_, "text": f"n{i}"}) + "\n" for i, id_ in enumerate(ids)))
    return root


def test_codes_stand_for_labels_without_text_and_a_new_label_is_one_more(
    run, tiny_config: Path, labelled: Path, tmp_path: Path
):
    given = ("train", tiny_config, "--set", f"data.path={labelled}", "--set", "labels.rows=codes", "--set", "tower.dimension=8")
    said = run(*given, "--set", f"out={tmp_path / 'a'}", "--set", "training.epochs=30")
    assert "queries alone" in said and "against codes" in said
    first = Bundle.open(tmp_path / "a")
    assert largest(first.embeddings) < 0.45
    assert (
        json.loads(run("search", tmp_path / "a", "matrix decomposition singular value", "-k", "1", "--json"))[0]["id"] == "svd"
    )

    with (labelled / "labels.jsonl").open("a") as lines:
        lines.write('{"id": "more", "text": "n10"}\n')
    run(*given, "--set", f"out={tmp_path / 'b'}", "--set", f"labels.bundle={tmp_path / 'a'}", "--set", "training.epochs=1")
    second = Bundle.open(tmp_path / "b")
    assert torch.equal(second.embeddings[:10], first.embeddings) and second.labels.ids[10] == "more"
    assert largest(second.embeddings, first=10) < 0.6


@pytest.mark.parametrize("loss", ["z_loss", "decoupled_softmax"])
def test_queries_are_tuned_against_a_bundle_that_stays_as_it_is(
    run, tiny_config: Path, tiny_bundle: Path, tmp_path: Path, loss: str
):
    config = tmp_path / "tune.toml"
    text = f'out = "{tmp_path / "run"}"\n[data]\npath = "{load(Config, tiny_config).data.path}"\n[loss]\nname = "{loss}"\n'
    config.write_text(text + f'[labels]\nrows = "bundle"\nbundle = "{tiny_bundle}"\n[training]\nepochs = 3\nbatch = 16\n')
    assert "encoder and tower of" in run("train", config)
    old, new = Bundle.open(tiny_bundle), Bundle.open(tmp_path / "run")
    assert torch.equal(old.embeddings, new.embeddings)
    texts = ["solving equations", "zzz"]
    assert torch.allclose(old.model().embed_labels(texts), new.model().embed_labels(texts))
    before, after = old.model().embed_queries(texts)[0], new.model().embed_queries(texts)[0]
    assert not torch.allclose(before[0], after[0], atol=1e-4) and not after[1].any()


def test_the_quick_gradient_is_that_over_the_whole_index(tiny_config: Path, tiny_bundle: Path, tmp_path: Path):
    from data import open_format
    from training.config import settle

    config = load(Config, tiny_config, (f"labels.bundle={tiny_bundle}", "labels.rows=bundle", "loss.name=z_loss"))
    files = open_format(config.data.path)
    labels, split = files.labels(), files.read("train")
    run = Run(settle(config, len(split))[0], labels, split, None)
    rows = torch.arange(0, 40, 2).numpy()
    run.model.tower.dropout = 0.0  # type: ignore[assignment]
    value = run.method.backward(rows)
    quick = run.method.trained["matrix"].grad
    assert quick is not None
    queries = run.model.tower.queries(run.model.encoder.encode_many([split.texts[row] for row in rows]))
    loss = LOSSES.build("z_loss", {"temperature": 0.06})(queries, Bundle.open(tiny_bundle).embeddings, run.positives.take(rows))
    whole = torch.autograd.grad(loss, run.method.trained["matrix"])[0]
    assert value == pytest.approx(loss.item(), rel=1e-5) and torch.allclose(quick, whole, atol=1e-6)


def test_what_makes_no_sense_is_told(run, tiny_config: Path, tiny_bundle: Path, labelled: Path, tmp_path: Path):
    def fails(*settings: str) -> str:
        given = [f"out={tmp_path / 'x'}", *settings]
        return str(run("train", tiny_config, *[part for setting in given for part in ("--set", setting)], fails=True))

    assert "labels.bundle: a bundle is needed" in fails("labels.rows=bundle")
    assert "no effect" in fails(f"labels.bundle={tiny_bundle}")
    assert "finetune.train" in fails("labels.rows=codes", "finetune.train=full")
    assert "of 32 dimensions, and queries of 8" in fails(
        "labels.rows=codes", f"labels.bundle={tiny_bundle}", "tower.dimension=8"
    )
    (labelled / "labels.jsonl").write_text((labelled / "labels.jsonl").read_text() + '{"id": "new", "text": "x"}\n')
    assert "has no label 'new'" in fails("labels.rows=bundle", f"labels.bundle={tiny_bundle}", f"data.path={labelled}")
