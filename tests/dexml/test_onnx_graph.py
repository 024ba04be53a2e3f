"""The ONNX graph of every kind of model gives torch's rows for batches and lengths that it was not traced with."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dexml import onnx_graph
from dexml.__main__ import command
from dexml.bundle import Bundle
from dexml.errors import InputError
from dexml.model import DualEncoder

missing = [name for name in onnx_graph.NEEDED if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason="pip install dexml[onnx]")
TEXTS = ["Sorting arrays quickly.", "the fast Fourier transform of a signal " * 9, "a", "", "naïve café ☃", *["matrix"] * 9]
PAIRS = [("bag", "tokens"), ("transformer", "residual"), ("transformer", "identity"), ("joint", "summed"), ("joint", "compact")]


def make(encoder: str, tower: str, transformer: Path, folder: Path) -> DualEncoder:
    """A model as a bundle holds it: with parameters that training could have left, saved and read back."""
    options = {} if encoder == "bag" else {"model": str(transformer)}
    made = DualEncoder.make(encoder, options, tower, {} if encoder == "transformer" else {"start": "random"}, TEXTS * 2)
    with torch.no_grad():
        for parameter in made.tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.save(folder)
    return DualEncoder.load(folder)


@needs_onnx
@pytest.mark.parametrize(("encoder", "tower"), PAIRS, ids=["+".join(pair) for pair in PAIRS])
def test_the_graph_gives_torchs_rows(encoder: str, tower: str, transformer: Path, tmp_path: Path):
    import onnxruntime

    model = make(encoder, tower, transformer, tmp_path / "model")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model_quantized.onnx").write_bytes(b"of the model that was here before")
    assert onnx_graph.export(model, tmp_path / "onnx", TEXTS) <= 1e-5
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    for texts in (TEXTS, TEXTS[:1], ["", ""], TEXTS[1:2] * 3):
        got = session.run(["sentence_embedding"], onnx_graph.feed(model, texts))[0]
        assert np.abs(got - model.embed_queries(texts)[0].numpy()).max() <= 1e-5
    outputs = [output.name for output in session.get_outputs()]
    assert outputs == ["sentence_embedding"] if encoder == "bag" else ["last_hidden_state", "sentence_embedding"]


@needs_onnx
def test_a_graph_that_differs_is_refused(transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = make("bag", "tokens", transformer, tmp_path / "model")
    monkeypatch.setattr(onnx_graph, "compare", lambda *_: 2e-4)
    with pytest.raises(InputError, match=r"differ from torch's by 2\.0e-04, more than 1e-04"):
        onnx_graph.export(model, tmp_path / "onnx", TEXTS)


@needs_onnx
def test_a_graph_of_one_length_is_refused(transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = make("bag", "tokens", transformer, tmp_path / "model")
    monkeypatch.setattr(onnx_graph, "_open_axes", lambda names: tuple({1: "features"} for _ in names))
    with pytest.raises(InputError, match=r"fixes a length of features"):
        onnx_graph.export(model, tmp_path / "onnx", TEXTS)


def test_a_missing_package_is_told(transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = make("bag", "tokens", transformer, tmp_path / "model")
    monkeypatch.setattr(onnx_graph, "NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(InputError, match=r"no_such_package missing; pip install 'dexml\[onnx\]'"):
        onnx_graph.export(model, tmp_path / "onnx", TEXTS)


def test_inputs_that_no_graph_has_are_told(transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = make("transformer", "identity", transformer, tmp_path / "model")
    tokenize = model.encoder.network().tokenize
    more = {"pixel_values": torch.zeros(1)}
    monkeypatch.setattr(type(model.encoder), "tokenize", lambda self, texts: {**tokenize(texts), **more})
    with pytest.raises(InputError, match="reads 'pixel_values' besides tokens"):
        onnx_graph.feed(model, TEXTS)


@needs_onnx
def test_the_command_leaves_a_bundle_that_opens(tiny_bundle: Path, tmp_path: Path):
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "run" / "bundle"))
    for _ in range(2):
        told = run(bundle.parent)
        assert "onnx/model.onnx" in told and "largest difference from torch" in told
    opened = Bundle.open(bundle)
    assert "encoder/onnx/model.onnx" in opened.manifest.files
    assert onnx_graph.compare(opened.model(), opened.root / "encoder" / "onnx", opened.labels.texts) <= 1e-4


def test_the_command_wants_to_know_what(tiny_bundle: Path):
    result = CliRunner().invoke(command, ["export", str(tiny_bundle)])
    assert result.exit_code == 2 and "--onnx" in result.output


def run(bundle: Path) -> str:
    result = CliRunner().invoke(command, ["export", str(bundle), "--onnx"], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output
