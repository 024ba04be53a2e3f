"""`dexml audit` from end to end: the tables, the page, the document, its certificates, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dexml.bundle import Bundle
from index.audit import Certificate
from training.audit.measure import Asked, audit, rows_of


def test_an_audit_says_how_little_changes_an_answer(run, tiny_bundle: Path, tmp_path: Path):
    page, document = tmp_path / "audit.html", tmp_path / "audit.json"
    given = ("--queries", 6, "--top", 3, "--attacked", 2, "--iterations", 8, "--report", page, "--json", document)
    told = run("audit", tiny_bundle, *given)
    for words in ("how little changes an answer", "lists that can be returned", "attacks on token embeddings", "passes"):
        assert words in told
    found = json.loads(document.read_text())
    assert found["finished"] and len(found["queries"]) == 6 and found["audit"]["top"] == 3
    for query in found["queries"]:
        assert 0 <= query["any_change"]["degrees"] <= query["new_label"]["degrees"] < 90
        assert set(query["moves"]) == {
            "the first two change places",
            "number 4 takes place 3",
            "number 10 becomes the first",
        }
    assert {(of["kind"], of["k"]) for of in found["lists"]} == {(kind, k) for kind in KINDS for k in (1, 5)}
    assert {(of["attack"], of["k"]) for of in found["attacks"]} == {(way, k) for way in ("QuadAttacK", "CW^K") for k in (1, 5)}
    assert all(len(of["reached"]) == 2 for of in found["attacks"])
    shown = page.read_text()
    assert shown.startswith("<!doctype html>") and "Most fragile queries" in shown and "<script" not in shown
    assert run("audit", tiny_bundle, *given) and json.loads(document.read_text()) == found, "of one seed"


KINDS = ("random labels", "labels near the answer")


def test_certificates_in_the_document_prove_what_they_say(run, tiny_bundle: Path, tmp_path: Path):
    document = tmp_path / "audit.json"
    run("audit", tiny_bundle, "--attacked", 0, "--json", document)
    bundle = Bundle.open(tiny_bundle)
    rows = bundle.embeddings.double().numpy()
    numbers = {label: number for number, label in enumerate(bundle.labels.ids)}
    found = json.loads(document.read_text())
    pushes = [push for of in found["lists"] for push in of["pushes"]]
    assert len(pushes) == 40 and not any("undecided_after_rounds" in push for push in pushes)
    for push in pushes:
        if (proof := push.get("certificate")) is not None:
            better, worse, weights = zip(*proof["better_worse_weight"], strict=True)
            sides = [np.array([numbers[label] for label in side]) for side in (better, worse)]
            assert Certificate(*sides, np.array(weights), proof["bound"]).holds(rows, found["audit"]["margin"])
            place = {label: number for number, label in enumerate(push["list"])}
            assert all(place[one] < place.get(other, 99) for one, other in zip(better, worse, strict=True))


def test_one_label_is_promoted_and_what_is_wrong_is_refused(run, tiny_bundle: Path, tmp_path: Path):
    told = run("audit", tiny_bundle, "--attacked", 0, "--promote", "fft")
    assert "the one named becomes the first" in told
    assert "has no label 'nonesuch'" in run("audit", tiny_bundle, "--promote", "nonesuch", fails=True)
    assert "does not exist" in run("audit", tiny_bundle, "--report", tmp_path / "no" / "page.html", fails=True)
    assert "nope" in run("audit", tiny_bundle, "--split", "nope", fails=True)


@pytest.mark.parametrize("stage", ["pushes", "lists", "attacks"])
def test_an_audit_that_is_stopped_keeps_what_it_has(stage: str, tiny_bundle: Path, tiny_data: Path):
    from data import open_format
    from index.retriever import Retriever

    retriever = Retriever.open(tiny_bundle, "exact")
    split = open_format(tiny_data).read("test")
    own = rows_of(split, np.arange(10))
    assert [own.row(row).tolist() for row in range(len(split))] == [split.positives.row(row).tolist() for row in range(10)]
    found = audit(retriever, split, own, Asked(attacked=1, iterations=2), lambda name, done, total: name.startswith(stage))
    assert not found.finished and not found.strikes
    assert bool(found.orders) is (stage != "pushes") and bool(found.reach) is (stage == "attacks")
    from training.audit.report import html

    assert "stopped" in html("tiny", "stopped", found, split, retriever.labels, {})
