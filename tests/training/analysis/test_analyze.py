"""`dexml analyze` from end to end: tables, pages, documents, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data import open_format
from dexml.analysis.dags import simulated
from dexml.model import DualEncoder
from dexml.types import Positives
from training.analysis import label_graph
from training.analysis.label_graph import explained_away, find
from training.analysis.ntk import CUTOFFS, START, TRAINED, WIDE, Asked, measure
from training.analysis.ntk_report import document, html


def test_the_kernels_of_a_run_are_told(run, tiny_bundle: Path, tmp_path: Path):
    page, document = tmp_path / "ntk.html", tmp_path / "ntk.json"
    told = run("analyze", "ntk", tiny_bundle, "--rows", 40, "--directions", 2, "--report", page, "--json", document)
    for words in ("kernels of 40 training rows", "In training the kernel moved", "learned first", "the run"):
        assert words in " ".join(told.split())
    found = json.loads(document.read_text())
    assert set(found["kernels"]) == {START, TRAINED, *WIDE}
    for kernel in found["kernels"].values():
        values = kernel["eigenvalues"]
        assert len(values) == 40 and min(values) >= 0 and values == sorted(values, reverse=True)
        assert 1 <= kernel["effective_rank"] <= 40 and 0 < kernel["alignment"] <= 1
        assert sum(kernel["label_energy"]) == pytest.approx(1)
    assert 0 < found["turn"] <= 2**0.5 and found["drift"] > 0
    assert len(found["labels"]) >= 8 and all(label["half_life"] > 0 for label in found["labels"])
    assert len(found["residuals"].pop("times")) == 61
    for of in found["residuals"].values():
        assert all(np.diff(of) <= 1e-12)
    for ridge in found["ridge"].values():
        assert len(ridge["test"]) == len(CUTOFFS) and ridge["test"][0] >= 90, "the tiny set is easy"
    shown = page.read_text()
    assert shown.startswith("<!doctype html>") and "Learned last" in shown and "<script" not in shown


def test_a_graph_of_labels_is_told_drawn_and_kept(run, tiny_data: Path, tmp_path: Path):
    page, document, graph = (tmp_path / name for name in ("labels.html", "labels.json", "labels.graphml"))
    told = run(
        *("analyze", "labels", tiny_data, "--labels", 8, "--threshold", 0.01),
        *("--report", page, "--json", document, "--graphml", graph),
    )
    assert "rounds of swaps" in told and "standardised columns" in " ".join(told.split())
    found = json.loads(document.read_text())
    assert len(found["labels"]) == 8 and sorted(found["order"]) == sorted(label["id"] for label in found["labels"])
    place = {label: number for number, label in enumerate(found["order"])}
    assert found["edges"] and all(place[edge["from"]] < place[edge["to"]] for edge in found["edges"])
    assert all(np.diff(found["losses"]) < 0)
    assert graph.read_text().count("<edge ") == len(found["edges"])
    assert page.read_text().count("<path ") == len(found["edges"])


def test_scores_of_a_run_are_taken_away(run, tiny_bundle: Path, tiny_data: Path, tmp_path: Path):
    document = tmp_path / "labels.json"
    run("analyze", "labels", tiny_bundle, "--scores", "--json", document)
    assert json.loads(document.read_text())["analysis"]["scores"] is True
    run("analyze", "labels", tiny_data, "--loss", "logistic", "--json", document)
    assert json.loads(document.read_text())["standardised"] is None
    assert "is no run" in run("analyze", "labels", tiny_data, "--scores", fails=True)
    assert "use --loss squared" in run("analyze", "labels", tiny_bundle, "--scores", "--loss", "logistic", fails=True)
    assert "is no run" in run("analyze", "labels", tiny_data, "--data", tiny_data, fails=True)
    assert "does not exist" in run("analyze", "ntk", tmp_path / "none", fails=True)


def test_what_scores_explain_leaves_no_edge_and_what_they_do_not_stays():
    generator = np.random.default_rng(0)
    topic = generator.random(3000)
    scores = np.stack([topic, topic, generator.random(3000)], axis=1)
    data = (generator.random(scores.shape) < scores).astype(float)
    data[:, 2] = np.where(generator.random(3000) < 0.9, data[:, 0], data[:, 2])  # the text of 2 says nothing of it
    left = explained_away(data, scores)
    assert abs((left * (scores - scores.mean(axis=0))).mean(axis=0)).max() < 1e-12
    positives = Positives.from_rows([np.flatnonzero(row).tolist() for row in data], 3)
    plain, beyond = (
        find(positives, np.arange(3), given, label_graph.Asked(threshold=0.2), lambda *said: False) for given in (None, scores)
    )
    assert {frozenset(edge) for edge in plain.edges.tolist()} >= {frozenset((0, 1)), frozenset((0, 2))}
    assert {frozenset(edge) for edge in beyond.edges.tolist()} == {frozenset((0, 2))}


def test_a_search_that_is_stopped_is_told():
    _, data = simulated(8, 2, 200, np.random.default_rng(0))
    positives = Positives.from_rows([np.flatnonzero(row > 0).tolist() for row in data], 8)
    found = find(positives, np.arange(8), None, label_graph.Asked(), lambda *said: True)
    assert not found.finished and len(found.search.losses) == 1


def test_a_tower_without_parameters_has_the_kernels_of_its_features_alone(tiny_transformer: Path, tiny_data: Path):
    files = open_format(tiny_data)
    model = DualEncoder.make("transformer", {"model": str(tiny_transformer)}, "identity", {}, files.labels().texts)
    rows = model.embed_labels(files.labels().texts)
    found = measure(model, rows, files.read("train"), files.read("test"), Asked(rows=30), lambda what: None)
    assert set(found.kernels) == set(WIDE) and np.isnan(found.drift) and "no empirical kernel" in found.note
    facts: dict[str, object] = {}
    assert "no empirical kernel" in html("tiny", "", found, files.labels(), [1.0, 1.0, 1.0], 60, facts)
    assert document(found, files.labels(), [1.0, 1.0, 1.0], facts)["drift"] is None
