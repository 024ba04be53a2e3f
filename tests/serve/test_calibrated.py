"""Calibrated probabilities over HTTP: those of the bundle's curve, refused without one; labels too improbable left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dexml.bundle import extend
from dexml.calibration import Calibration
from index.retriever import Retriever

QUERIES = ["how to sort an array", "random numbers please", "zzz qqq"]
FITTED = Calibration(
    temperature=0.1,
    share=0.3,
    knots=(-3.0, 0.0, 4.0, 9.0),
    probabilities=(0.05, 0.2, 0.6, 0.98),
    thresholds=(0.05,) * 50 + (0.3,) * 30,
    rows=100,
    depth=100,
    ece=(0.7, 0.02),
)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("calibrated") / "bundle"))
    extend(root, FITTED.write)
    return root


def asking(make_app, path: Path | Retriever):
    app = make_app(path if isinstance(path, Retriever) else lambda: Retriever.open(path))
    assert app.extensions["dexml"].worker.wait_until_loaded(30)
    client = app.test_client()
    return lambda **body: client.post("/v1/search", json={"queries": QUERIES, "top_k": 10, **body}), client


def test_the_probabilities_are_those_of_the_curve_and_the_order_stays(make_app, bundle: Path):
    from serve.schemas import SearchResponse

    ask, client = asking(make_app, bundle)
    reply = ask(normalize="calibrated")
    assert reply.status_code == 200, reply.data
    SearchResponse.model_validate(reply.json, strict=True, extra="forbid")
    over_all = Retriever.open(bundle).search(QUERIES[:2], 10, normalize="all", temperature=0.1)
    expected = FITTED.of(over_all.topk.scores.numpy(), over_all.topk.log_z.numpy())
    plain = ask(normalize="topk").json["results"]
    for row, result in enumerate(reply.json["results"][:2]):
        assert [label["probability"] for label in result["labels"]] == pytest.approx(expected[row].tolist(), abs=1e-6)
        assert [label["id"] for label in result["labels"]] == [label["id"] for label in plain[row]["labels"]]
        assert result["normalizer"] == {"kind": "calibrated", "log_z": None, "labels": None}
    assert len(np.unique(np.round(expected, 6))) > 5
    assert reply.json["results"][2]["labels"] == []
    about = client.get("/v1/info").json["bundle"]["calibration"]
    assert about == {"rows": 100, "depth": 100, "ece@5": [0.7, 0.02], "highest_precision": 0.8}


def test_labels_too_improbable_are_left_out(make_app, bundle: Path):
    ask, _ = asking(make_app, bundle)
    whole = ask(normalize="calibrated").json["results"]
    for precision, least in ((0, 0), (0.5, 0.05), (0.505, 0.3), (0.8, 0.3)):
        found = ask(normalize="calibrated", min_precision=precision, include=[]).json["results"]
        for one, other in zip(found, whole, strict=True):
            kept = [label["id"] for label in other["labels"] if label["probability"] >= least]
            assert [label["id"] for label in one["labels"]] == kept and one["returned"] == len(kept)
            assert all(label["probability"] is None for label in one["labels"])
    counts = [len(result["labels"]) for result in found[:2]]
    assert 0 < sum(counts) < 20


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"normalize": "calibrated", "min_precision": 0.81}, "precision_out_of_range", "at most 0.8"),
        ({"normalize": "calibrated", "min_precision": 1.5}, "precision_out_of_range", "between 0 and 1, got 1.5"),
        ({"normalize": "calibrated", "min_precision": -0.1}, "precision_out_of_range", "between 0 and 1"),
        ({"min_precision": 0.5}, "schema", 'goes with normalize "calibrated"'),
        ({"normalize": "calibrated", "temperature": 0.1}, "schema", "temperature must be null"),
        ({"normalize": "calibrated", "min_precision": 0.5, "diversity": 1.0}, "schema", "do not go together"),
    ],
)
def test_what_cannot_be_is_said(make_app, bundle: Path, body: dict[str, object], code: str, said: str):
    ask, _ = asking(make_app, bundle)
    reply = ask(**body)
    assert reply.status_code == 422 and reply.json["error"]["code"] == code and said in reply.json["detail"], reply.data


def test_a_bundle_without_one_says_so_and_versions_change_it_with_the_model(make_app, tiny_bundle: Path, tmp_path: Path):
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    extend(root, FITTED.write)
    retriever = Retriever.open(root, writable=True)
    with retriever.store as store:
        ask, client = asking(make_app, retriever)
        assert ask(normalize="calibrated").status_code == 200
        store.activate("v000001")
        refused = ask(normalize="calibrated")
        assert refused.status_code == 422 and refused.json["error"]["code"] == "calibration_unavailable"
        assert refused.json["error"]["param"] == "normalize" and "dexml calibrate" in refused.json["detail"]
        assert client.get("/v1/info").json["bundle"]["calibration"] is None
        store.activate("v000002")
        assert ask(normalize="calibrated").status_code == 200
        from serve.tickets import Ask
        from serve.worker import _overtaken

        plain = Retriever.open(tiny_bundle)
        late = _overtaken(Ask(3, texts=("a",), normalize="calibrated"), plain)
        assert late is not None and late.code == "calibration_unavailable", "checked before the swap, answered after it"


def test_the_command_line_has_it(bundle: Path, tiny_bundle: Path):
    from dexml.__main__ import command

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(command, ["search", *arguments], standalone_mode=False)
        return done.output if done.exception is None else str(done.exception)

    text = "sorting and ordering of arrays"
    answers = json.loads(run(str(bundle), text, "-k", "10", "--calibrated", "--json"))
    found = Retriever.open(bundle).search([text], 10, normalize="calibrated").probabilities()
    assert [answer["probability"] for answer in answers] == pytest.approx(found[0].tolist(), abs=1e-6)
    few = json.loads(run(str(bundle), text, "-k", "10", "--min-precision", "0.8", "--json"))
    assert few == [answer for answer in answers if answer["probability"] >= 0.3] != []
    assert "at most 0.8" in run(str(bundle), text, "--min-precision", "0.9")
    assert "has no calibration" in run(str(tiny_bundle), text, "--calibrated")
