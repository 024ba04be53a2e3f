"""Kernel features in a training: a tower of them, and adapters in an encoder; both end as bundles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data import open_format
from dexml import versions
from dexml.bundle import Bundle
from dexml.config import load
from dexml.encoders import kernel_adapter
from dexml.encoders.transformer import TransformerEncoder
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


def test_adapters_leave_the_model_as_it_was_until_they_are_trained(tiny_transformer: Path, tmp_path: Path):
    model = DualEncoder.make("transformer", {"model": str(tiny_transformer)}, "residual", {}, [])
    encoder = model.encoder
    assert isinstance(encoder, TransformerEncoder)
    plain = encoder.encode(TEXTS).dense
    names = set(encoder.module.state_dict())
    kernel_adapter.attach(encoder.module, rank=4, features=16)
    assert plain is not None and torch.equal(encoder.encode(TEXTS).dense, plain)
    own = [value for value in encoder.module.parameters() if value.requires_grad]
    assert sum(value.numel() for value in own) == 2 * (4 * 16 + 4 * 32 + 32), "Ψ, and Up with its bias, in both blocks"
    torch.manual_seed(0)
    with torch.no_grad():
        for value in own:
            value.add_(torch.randn_like(value))
    adapted = encoder.encode(TEXTS).dense
    assert adapted is not None and (adapted - plain).abs().max() > 1e-2
    with kernel_adapter.taken_off(encoder.module):
        assert torch.equal(encoder.encode(TEXTS).dense, plain) and set(encoder.module.state_dict()) == names
    model.save(tmp_path / "model")
    assert torch.equal(encoder.encode(TEXTS).dense, adapted), "saving changes nothing"
    assert torch.allclose(DualEncoder.load(tmp_path / "model").encoder.encode(TEXTS).dense, adapted, atol=1e-6)
    weights = tmp_path / "model/transformer" / kernel_adapter.FILE
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"snnk\.safetensors: damaged"):
        DualEncoder.load(tmp_path / "model").embed_queries(TEXTS)
    with pytest.raises(InputError, match="no stack of blocks"):
        kernel_adapter.attach(torch.nn.Linear(3, 3))


def test_the_bundle_opens_with_the_adapters_that_were_trained(tuning_config: Path, tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    config = load(Config, tuning_config, [f"out={tmp_path}", "finetune.train=snnk", "finetune.rate=0.01", "training.epochs=2"])
    check(config)
    files = open_format(config.data.path)
    split = files.read("train")
    run = Run(settle(config, len(split))[0], files.labels(), split, None)
    assert run.go(lambda progress: None)
    rows, _ = run.model.embed_queries(TEXTS)
    bundle, _ = export(run, split, finished=True)
    assert torch.equal(run.model.embed_queries(TEXTS)[0], rows)
    opened = SentenceTransformer(str(versions.current(bundle)[0] / "encoder"), device="cpu")
    assert (opened.encode(TEXTS, convert_to_tensor=True) - rows).abs().max() <= 1e-5
    retriever = Retriever.open(bundle, "exact")
    assert (retriever.model.embed_queries(TEXTS)[0] - rows).abs().max() <= 1e-5
    assert retriever.search(["sorting and ordering of arrays"], 1).topk.ids[0, 0] == retriever.labels.ids.index("sorting")
