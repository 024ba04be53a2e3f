"""`dexml evaluate --report`: figures are the metrics', pictures have their tables, what does not go together is told."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from dexml import metrics
from dexml.__main__ import main
from dexml.types import Positives
from training import plots
from training.compare import Side


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def random_scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("baseline") / "random.npz"
    sp.save_npz(path, sp.csr_matrix(np.random.default_rng(0).random((10, 10))))
    return path


@pytest.fixture(scope="module")
def reported(tiny_bundle: Path, tiny_data: Path, random_scores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "report"
    call = ("evaluate", tiny_bundle, "--data", tiny_data, "--report", out, "--baseline", random_scores)
    assert run(*call, "--json", out.parent / "figures.json") == 0
    return out


def test_the_page_has_the_figures_and_a_table_for_every_picture(reported: Path):
    text = (reported / "evaluation.html").read_text(encoding="utf-8")
    measured = json.loads((reported.parent / "figures.json").read_text())
    figures = {row["@"]: row for row in rows_of(reported / "figures.csv")}
    for name, value in measured.items():
        if "@" in name:
            kind, k = name.split("@")
            assert float(figures[kind][k]) == pytest.approx(value, rel=1e-5), name
    assert f"<b>{measured['P@1']:.1f}</b><span>P@1</span>" in text and "queries a second" in text
    assert f"{measured['sizes']['bundle_bytes'] / 1e6:,.1f} MB" in text
    linked = re.findall(r'href="([^"#:]+)" download', text)
    assert sorted(linked) == sorted(path.name for path in reported.glob("*.csv")) and len(linked) == len(set(linked)) == 19
    assert text.count("<svg") == len(re.findall(r'</svg>(?:<p class="legend">.*?</p>)?<a class="table"', text)) == 14
    for plot, column, name in (("p", "this run", "P"), ("r", "this run", "R"), ("ndcg", "this run", "nDCG")):
        at = {row["k"]: row for row in rows_of(reported / f"{plot}.csv")}
        assert len(at) == 100 and float(at["5"][column]) == pytest.approx(float(figures[name]["5"]), rel=1e-5)
    won = rows_of(reported / "wins.csv")
    assert [sum(int(row[name]) for name in ("this run", "equal", "baseline")) for row in won] == [10] * 4
    assert all(float(row["low"]) <= float(row["difference"]) <= float(row["high"]) for row in differences(reported))
    assert len(rows_of(reported / "worst.csv")) == 10


def differences(folder: Path) -> list[dict[str, str]]:
    return [row for row in rows_of(folder / "differences.csv") if row["low"]]


def test_a_report_is_a_baseline_and_measured_again_says_the_same(reported: Path, tiny_data: Path, tmp_path: Path):
    again = tmp_path / "again"
    scored = ("evaluate", "--scores", reported / "test.npz", "--data", tiny_data, "--report", again)
    assert run(*scored, "--baseline", reported) == 0
    assert (again / "figures.csv").read_text() == (reported / "figures.csv").read_text()
    assert (again / "scores.csv").read_text() == (reported / "scores.csv").read_text()
    assert {float(row["difference"]) for row in differences(again)} == {0.0}
    text = (again / "evaluation.html").read_text(encoding="utf-8")
    assert "Lost most" not in text and "Speed and size" not in text and "Right answers by probability" not in text
    assert run(*scored) == 0
    assert not (again / "wins.csv").exists() and not (again / "differences.csv").exists(), "no table without its picture"
    assert "Against the baseline" not in (again / "evaluation.html").read_text(encoding="utf-8")


def test_without_training_rows_or_answers_there_is_less_to_say(tiny_data: Path, tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("labels.jsonl", "test.jsonl"):
        (data / name).write_text((tiny_data / name).read_text())
    (tmp_path / "none.trec").write_text("")
    assert run("evaluate", "--scores", tmp_path / "none.trec", "--data", data, "--report", tmp_path / "out") == 0
    text = (tmp_path / "out/evaluation.html").read_text(encoding="utf-8")
    assert "By label frequency" not in text and "PSP" not in text and ">none</li>" in text
    assert {row["this run"] for row in rows_of(tmp_path / "out/p.csv")} == {"0"}


def test_what_does_not_go_together_is_told(tiny_bundle: Path, random_scores: Path, tmp_path: Path, capsys):
    assert run("evaluate", tiny_bundle, "--baseline", random_scores) == 2
    assert "--report" in capsys.readouterr().err
    assert run("evaluate", tiny_bundle, "--report", random_scores) == 2
    assert "is no folder" in capsys.readouterr().err
    assert run("evaluate", tiny_bundle, "--report", tmp_path / "out", "--baseline", tmp_path / "nowhere") == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err and not (tmp_path / "out").exists()


RANKED = np.array([[0, 1, 2], [3, 0, -1], [4, 2, 1]])
TRUTH = Positives.from_rows([[0, 2], [0], [5]], 6)
FOUND = np.array([[True, False, True], [False, True, False], [False, False, False]])
SCORES = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, -np.inf], [0.9, 0.4, 0.3]])


def test_curves_are_the_metrics_at_every_k_below_what_is_possible():
    weights = np.linspace(1, 2, 6)
    by_file = {plot.file: plot for plot in plots.curves({"one": [RANKED], "two": [RANKED, RANKED[:, ::-1]]}, TRUTH, weights)}
    for name, of in (("p.csv", metrics.precision_at), ("r.csv", metrics.recall_at), ("ndcg.csv", metrics.ndcg_at)):
        for k, one, two, *_ in by_file[name].table[1]:
            assert one == pytest.approx(of(RANKED, TRUTH, k))
            assert two == pytest.approx((of(RANKED, TRUTH, k) + of(RANKED[:, ::-1], TRUTH, k)) / 2)
    assert [row[-1] for row in by_file["p.csv"].table[1]] == pytest.approx([100, 200 / 3, 400 / 9])
    assert [row[-1] for row in by_file["r.csv"].table[1]] == pytest.approx([250 / 3, 100, 100])
    assert "psp.csv" not in {plot.file for plot in plots.curves({"one": [RANKED]}, TRUTH, None)}


def test_histograms_and_thresholds_count_every_answer_once():
    rows = plots.scores(FOUND, SCORES).table[1]
    assert (sum(row[2] for row in rows), sum(row[3] for row in rows)) == (3, 5)
    first, *_, last = plots.by_score(FOUND, SCORES, true=4).table[1]
    assert first == pytest.approx((0.3, 8, 3, 37.5, 75)) and last == pytest.approx((0.9, 2, 1, 50, 25))


def test_probabilities_that_are_right_lie_on_the_line():
    given = np.where(FOUND, 0.8, 0.2)
    curve, lie = plots.reliability([("plain", given), ("other", 0 * given + 0.5)], FOUND, 3)
    points = [row for row in curve.table[1] if row[0] == "plain"]
    assert [row[1:] for row in points] == [pytest.approx((20, 0, 6)), pytest.approx((80, 100, 3))]
    assert [row[1:] for row in curve.table[1] if row[0] == "other"] == [pytest.approx((50, 100 / 3, 9))]
    assert sum(row[2] for row in lie.table[1]) == pytest.approx(100) and "as it should be" in curve.svg


def test_gains_are_listed_by_row_and_drawn_in_order():
    a, b = (Side.of([ranked], TRUTH, None) for ranked in (RANKED, RANKED[:, ::-1]))
    plot = plots.by_query(a, b, ("before", "after"))
    assert [row for row, _ in plot.table[1]] == [0, 1, 2]
    assert plot.csv().startswith("row,difference\n") and "after − before" in plot.svg
