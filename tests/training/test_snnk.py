"""Kernel features in a training: a tower of them, a head in one solve, adapters; each ends as a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data import open_format
from dexml.bundle import Bundle
from dexml.config import load
from dexml.errors import InputError
from dexml.model import DualEncoder
from index.retriever import Retriever
from training.config import Config, check, settle
from training.export import export
from training.run import Run

TEXTS = ["sorting arrays", "sparse matrices and sorting", "a line by least squares", "fast transform"]


def test_a_kernel_tower_trains_its_base_and_serves_its_bundle(tiny_config: Path, tmp_path: Path):
    tower = "tower={name='kernel', base='tokens', base_options={dimension=32, start='random'}, features=256}"
    config = load(Config, tiny_config, [f"out={tmp_path}", tower, "loss.temperature=0.03", "training.epochs=8"])
    check(config)
    files = open_format(config.data.path)
    split = files.read("train")
    run = Run(settle(config, len(split))[0], files.labels(), split, None)
    before = {name: value.detach().clone() for name, value in run.method.trained.items()}
    assert run.go(lambda progress: None)
    assert [name for name, value in run.method.trained.items() if torch.equal(value, before[name])] == []
    assert {"free", "base.table"} <= before.keys()
    bundle, _ = export(run, split, finished=True)
    retriever = Retriever.open(bundle, "exact")
    assert Bundle.open(bundle).manifest.dimension == 256
    found = retriever.search(["sorting and ordering of arrays", "fast Fourier transform of a signal"], 1).topk.ids
    assert [retriever.labels.ids[number] for number in found[:, 0].tolist()] == ["sorting", "fft"]


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ("{name='kernel'}", r"tower\.base: 'residual' cannot read what the encoder 'bag' gives"),
        ("{name='kernel', base='tokens', base_options={dimensions=3}}", r"unknown key 'tower\.dimensions'"),
        ("{name='kernel', base='token'}", r"unknown tower 'token'; did you mean 'tokens'"),
        ("{name='kernel', base='tokens', function='tan'}", r"tower\.function: .*got 'tan'"),
        ("{name='kernel', base='tokens', features=0}", r"tower\.features: .*got 0"),
    ],
)
def test_a_wrong_option_is_named(tiny_config: Path, tower: str, message: str):
    with pytest.raises(InputError, match=message):
        check(load(Config, tiny_config, [f"tower={tower}"]))


def test_a_transformer_behind_any_tower_is_saved_and_opened(tiny_transformer: Path, tmp_path: Path):
    """No plain sentence-transformers model says what such a tower does: the folder names our module, and the model its own."""
    from sentence_transformers import SentenceTransformer

    options = {"model": str(tiny_transformer)}
    for name in ("kernel", "adapted", "linear"):
        model = DualEncoder.make("transformer", options, name, {}, [])
        model.save(tmp_path / name)
        expected = model.embed_queries(TEXTS)[0]
        assert torch.allclose(DualEncoder.load(tmp_path / name).embed_queries(TEXTS)[0], expected, atol=1e-6)
        rows = SentenceTransformer(str(tmp_path / name), device="cpu").encode(TEXTS, convert_to_tensor=True)
        assert torch.allclose(rows, expected, atol=1e-6)
