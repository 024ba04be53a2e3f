"""What is measured is what is served: `evaluate` and the HTTP service give the same ids and scores for every test row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data import open_format
from dexml import metrics
from index.retriever import Retriever
from training.evaluate import evaluate


def test_evaluation_and_http_agree(real, tiny_bundle: Path, tiny_data: Path):
    retriever = Retriever.open(tiny_bundle)
    split = open_format(tiny_data).read("test")
    measured = evaluate(retriever, retriever.labels, split, metrics.DEFAULT_PROPENSITY, lambda rows: None)
    reply = real.post({"queries": list(split.texts), "top_k": 10, "candidates": 200, "normalize": "topk"})
    assert reply.status == 200
    number = {label: row for row, label in enumerate(retriever.labels.ids)}
    for row, result in enumerate(reply.json["results"]):
        assert [number[label["id"]] for label in result["labels"]] == measured.ranked[row, :10].tolist()
        assert [label["score"] for label in result["labels"]] == pytest.approx(measured.scores[row, :10].tolist(), abs=1e-6)
    served = np.array([[number[label["id"]] for label in result["labels"]] for result in reply.json["results"]])
    assert metrics.precision_at(served, split.positives, 1) == measured.figures["P@1"]


def test_evaluation_and_the_default_call_agree_where_the_index_sees_a_part_of_the_labels(make_app, wide: tuple[Path, Path]):
    data, bundle = wide
    retriever = Retriever.open(bundle)
    split = open_format(data).read("test")
    measured = evaluate(retriever, retriever.labels, split, metrics.DEFAULT_PROPENSITY, lambda rows: None)
    app = make_app(lambda: Retriever.open(bundle))
    assert app.extensions["dexml"].worker.wait_until_loaded(30)
    results = []
    for first in range(0, len(split), 64):
        reply = app.test_client().post("/v1/search", json={"queries": split.texts[first : first + 64]})
        assert reply.status_code == 200, reply.data
        results.extend(reply.json["results"])
    number = {label: row for row, label in enumerate(retriever.labels.ids)}
    for row, result in enumerate(results):
        assert result["exact"] is False
        assert [number[label["id"]] for label in result["labels"]] == measured.ranked[row, :10].tolist()
        assert [label["score"] for label in result["labels"]] == pytest.approx(measured.scores[row, :10].tolist(), abs=1e-6)
    served = np.array([[number[label["id"]] for label in result["labels"]] for result in results])
    assert metrics.precision_at(served, split.positives, 1) == measured.figures["P@1"] > 5
    # Fewer candidates would have given other answers: the index's own order is coarse.
    shallow = retriever.search(split.texts, 10, candidates=10)
    assert not np.array_equal(shallow.topk.ids.numpy(), measured.ranked[:, :10])


def test_the_normaliser_counts_the_candidates_that_there_were(make_app, wide: tuple[Path, Path]):
    retriever = Retriever.open(wide[1])
    texts = list(open_format(wide[0]).read("test").texts[:64])
    found = retriever.search(texts, 10)
    app = make_app(retriever)
    assert app.extensions["dexml"].worker.wait_until_loaded(30)
    ask = {"queries": [*texts, "zzz qqq"][1:], "top_k": 200, "exclude_ids": ["colour1/thing1"], "min_score": -2.0}
    results = app.test_client().post("/v1/search", json=ask).json["results"]
    assert [result["normalizer"]["labels"] for result in results[:-1]] == list(found.rescored[1:])
    assert min(found.rescored) < 200
    for result, rescored in zip(results, found.rescored[1:], strict=False):
        assert rescored - 1 <= result["returned"] <= rescored
    assert results[-1]["known"] is False and results[-1]["returned"] == 0 and results[-1]["normalizer"]["labels"] is None
