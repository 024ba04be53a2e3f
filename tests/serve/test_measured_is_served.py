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
