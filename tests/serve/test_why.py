"""Why a label: the training queries that speak for it, over HTTP, where the bundle keeps them and the client asks."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from data import open_format
from dexml import metrics
from index.retriever import Retriever
from training.evaluate import evaluate

QUERIES = ["how to sort an array", "random numbers please", "splitting of text strings", "zzz qqq"]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with the texts of its training queries, which are heard: λ is 2."""
    from dexml.__main__ import command

    root = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("why") / "bundle"))
    done = CliRunner().invoke(command, ["memory", str(root), "--data", str(tiny_data), "--texts", "--weight", "2"])
    assert done.exit_code == 0, done.output
    return root


@pytest.fixture
def ask(make_app, bundle: Path):
    app = make_app(lambda: Retriever.open(bundle))
    assert app.extensions["dexml"].worker.wait_until_loaded(30)
    return lambda body: app.test_client().post("/v1/search", json=body)


def test_every_label_has_its_nearest_training_queries(ask, bundle: Path, tiny_data: Path):
    from serve.schemas import SearchResponse

    train = open_format(tiny_data).read("train")
    ids = open_format(tiny_data).labels().ids
    carried = {text: {ids[label] for label in train.positives.row(row)} for row, text in enumerate(train.texts)}
    reply = ask({"queries": QUERIES, "top_k": 5, "include": ["why", "text"]})
    assert reply.status_code == 200, reply.data
    SearchResponse.model_validate(reply.json, strict=True, extra="forbid")
    found = Retriever.open(bundle).search(QUERIES, 5, why=True)
    for row, result in enumerate(reply.json["results"][:3]):
        for place, label in enumerate(result["labels"]):
            assert label["probability"] is None and 0 < len(label["why"]) <= 3
            assert all(label["id"] in carried[reason["text"]] for reason in label["why"])
            similarities = [reason["similarity"] for reason in label["why"]]
            assert similarities == sorted(similarities, reverse=True)
            assert similarities == pytest.approx([reason.similarity for reason in found.why[row][place]], abs=1e-6)
    assert reply.json["results"][3]["known"] is False and reply.json["results"][3]["labels"] == []


def test_it_is_null_when_not_asked_for_and_refused_where_nothing_can_be_told(ask, make_app, tiny_bundle: Path):
    assert [label["why"] for label in ask({"queries": QUERIES[:1]}).json["results"][0]["labels"]] == [None] * 10
    app = make_app(lambda: Retriever.open(tiny_bundle))
    assert app.extensions["dexml"].worker.wait_until_loaded(30)
    refused = app.test_client().post("/v1/search", json={"queries": QUERIES[:1], "include": ["why"]})
    assert refused.status_code == 422 and refused.json["error"]["code"] == "why_unavailable"
    assert refused.json["error"]["param"] == "include"
    assert app.test_client().get("/v1/info").json["bundle"]["memory"] == 0


def test_a_label_that_no_training_query_has_gets_an_empty_list(make_app, bundle: Path, tmp_path: Path):
    from dexml.label_log import Change

    root = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    retriever = Retriever.open(root, writable=True)
    with retriever.store as store:
        store.write([Change("new", "sorting", retriever.model.embed_labels(["sorting"])[0].numpy())])
        app = make_app(retriever)
        assert app.extensions["dexml"].worker.wait_until_loaded(30)
        reply = app.test_client().post("/v1/search", json={"queries": QUERIES[:1], "top_k": 11, "include": ["why"]}).json
        why = {label["id"]: label["why"] for label in reply["results"][0]["labels"]}
        assert why["new"] == [] and len(why["sorting"]) == 3
        assert retriever.describe()["memory"] == store.bundle.manifest.memory.queries > 40


def test_who_asks_why_changes_no_other_answer(ask):
    """Requests with and without, at once and alone: the same labels, scores and probabilities."""
    bodies = [{"queries": QUERIES[:3], "top_k": 4, "include": ["probability", *extra]} for extra in ([], ["why"])]
    alone = [ask(body).json["results"] for body in bodies]
    answers: list[tuple[int, object]] = []

    def many(number: int) -> None:
        answers.extend((number, ask(bodies[number]).json["results"]) for _ in range(8))

    threads = [threading.Thread(target=many, args=(number % 2,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 32 and all(answer == alone[number] for number, answer in answers)
    for result in alone[1]:
        for label in result["labels"]:
            label["why"] = None
    assert json.dumps(alone[0]) == json.dumps(alone[1])


def test_evaluation_and_http_agree_where_training_queries_have_a_say(ask, bundle: Path, tiny_data: Path):
    retriever = Retriever.open(bundle)
    split = open_format(tiny_data).read("test")
    measured = evaluate(retriever, open_format(tiny_data).labels(), split, metrics.DEFAULT_PROPENSITY, lambda rows: None)
    results = ask({"queries": list(split.texts), "top_k": 10, "normalize": "all"}).json["results"]
    number = {label: row for row, label in enumerate(retriever.labels.ids)}
    for row, result in enumerate(results):
        assert [number[label["id"]] for label in result["labels"]] == measured.ranked[row, :10].tolist()
        scores = [label["score"] for label in result["labels"]]
        assert scores == pytest.approx(measured.scores[row, :10].tolist(), abs=1e-6) and scores == sorted(scores, reverse=True)
        assert sum(label["probability"] for label in result["labels"]) == pytest.approx(1, abs=1e-4)
        assert result["normalizer"]["labels"] == 10
    assert max(label["score"] for result in results for label in result["labels"]) > 0
