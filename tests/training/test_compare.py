"""Paired differences: what is equal is equal, what is better is found, and 95 intervals of 100 hold the truth."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from dexml import metrics
from dexml.__main__ import main
from dexml.types import Positives
from training.bars import bar_chart
from training.compare import Difference, Side, compare, per_query

LABELS = 20


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def answers(random: np.random.Generator, right: np.ndarray) -> np.ndarray:
    """Return answers (N, 10) to queries whose one true label is 0: first where `right`, else absent."""
    ranked = np.stack([1 + random.permutation(LABELS - 1)[:10] for _ in right])
    ranked[right, 0] = 0
    return ranked


def truth(rows: int) -> Positives:
    return Positives.from_rows([[0]] * rows, LABELS)


def drawn(seed: int, rows: int, of_a: float, of_b: float, seeds: int = 1) -> tuple[Side, Side]:
    """Return two sides that are right with the given probabilities, on queries of which half are easy for both."""
    random = np.random.default_rng(seed)
    hard = random.random(rows)
    weights = np.linspace(1, 3, LABELS)
    sides = []
    for share in (of_a, of_b):
        right = [(hard + 0.3 * random.standard_normal(rows)) < share for _ in range(seeds)]
        sides.append(Side.of([answers(random, of) for of in right], truth(rows), weights))
    return sides[0], sides[1]


def named(found: list[Difference], name: str) -> Difference:
    return next(one for one in found if one.name == name)


def test_equal_runs_differ_by_nothing():
    a, _ = drawn(0, 200, 0.5, 0.5)
    for one in compare(a, a, draws=200):
        assert one.difference == 0 and one.a == one.b
        if one.p is not None:
            assert (one.low, one.high, one.p) == (0, 0, 1), one.name


def test_a_known_shift_is_found():
    a, b = drawn(1, 1000, 0.5, 0.6)
    better = named(compare(a, b), "P@1")
    assert better.low is not None and better.high is not None and better.p is not None
    assert better.p < 0.002 and 0 < better.low < 10 < better.high < 20
    assert named(compare(b, a), "PSP@5").difference == pytest.approx(-named(compare(a, b), "PSP@5").difference)


def test_no_shift_is_found_as_rarely_as_p_says():
    found = 0
    for seed in range(60):
        a, b = drawn(seed, 200, 0.5, 0.5)
        assert (per_query(a, b, "P@1") != 0).sum() > 20, "not equal, yet no better"
        one = named(compare(a, b, draws=200, seed=seed), "nDCG@5")
        assert one.p is not None
        found += one.p < 0.05
    assert found <= 8, "3 are expected, 9 or more once in 500 times"


def test_the_same_seed_gives_the_same_intervals():
    a, b = drawn(3, 150, 0.5, 0.55)
    assert compare(a, b, draws=300, seed=1) == compare(a, b, draws=300, seed=1)
    assert compare(a, b, draws=300, seed=1) != compare(a, b, draws=300, seed=2)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rows, draws, trials = 120, 300, 300
    random = np.random.default_rng(0)
    held, low_p = 0, 0
    names = ("P@1",)
    tally = metrics.Tally(LABELS, None, (1,))
    for trial in range(trials):
        # The difference of a pair is +1, 0 or −1 with probabilities 0.3, 0.5, 0.2: the truth is 10 points.
        b = random.choice([1.0, 0.0, -1.0], size=rows, p=[0.3, 0.5, 0.2])
        gained = np.stack([np.maximum(-b, 0), np.maximum(b, 0)])
        tally = metrics.Tally(LABELS, None, (1,))
        sides = [Side(names, side[None, None], np.ones((1, rows)), (tally,)) for side in gained]
        one = named(compare(sides[0], sides[1], draws=draws, seed=trial), "P@1")
        assert one.low is not None and one.high is not None and one.p is not None
        held += one.low <= 10 <= one.high
        low_p += one.p < 0.05
        assert (one.p < 0.05) == (one.low > 0 or one.high < 0) or abs(one.p - 0.05) < 0.02, "p and interval agree"
    assert 0.92 <= held / trials <= 0.98
    assert 0.15 <= low_p / trials <= 0.6, "10 points in 120 queries are found now and then"


def test_seeds_are_averaged_and_their_spread_is_told():
    a, b = drawn(4, 400, 0.5, 0.6, seeds=3)
    found = named(compare(a, b), "P@1")
    ours = [figures["P@1"] for figures in a.figures()]
    assert found.a == pytest.approx(np.mean(ours)) and found.a_deviation == pytest.approx(np.std(ours, ddof=1))
    assert found.p is not None and found.p < 0.01
    one = named(compare(*drawn(4, 400, 0.5, 0.6)), "P@1")
    assert one.a_deviation is None


def test_intervals_of_seeds_are_wider_where_seeds_disagree():
    rows = 400
    names, ones = ("P@1",), np.ones((1, rows))
    tally = metrics.Tally(LABELS, None, (1,))
    zero = Side(names, np.zeros((3, 1, rows)), ones, (tally,) * 3)
    random = np.random.default_rng(0)
    calm = (random.random((1, 1, rows)) < 0.2).repeat(3, axis=0).astype(float)
    wild = np.stack([(random.random((1, rows)) < share).astype(float) for share in (0.1, 0.2, 0.3)])
    widths = []
    for gained in (calm, wild):
        one = named(compare(zero, Side(names, gained, ones, (tally,) * 3)), "P@1")
        assert one.low is not None and one.high is not None
        widths.append(one.high - one.low)
    assert widths[1] > 1.2 * widths[0]


@pytest.fixture(scope="module")
def two_files(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    random = np.random.default_rng(0)
    rows = len((tiny_data / "test.jsonl").read_text().splitlines())
    ids = [json.loads(line)["id"] for line in (tiny_data / "labels.jsonl").read_text().splitlines()]
    true = [json.loads(line)["labels"] for line in (tiny_data / "test.jsonl").read_text().splitlines()]
    perfect = np.array([[float(name in labels) for name in ids] for labels in true])
    for number in range(2):
        sp.save_npz(folder / f"random-{number}.npz", sp.csr_matrix(random.random((rows, len(ids)))))
    sp.save_npz(folder / "perfect.npz", sp.csr_matrix(perfect))
    return folder


def test_two_files_with_pictures_and_json(two_files: Path, tiny_data: Path, tmp_path: Path, capsys):
    a, b, out = two_files / "random-0.npz", two_files / "perfect.npz", tmp_path / "out.json"
    call = ("compare", a, b, "--data", tiny_data, "--json", out, "--pictures", tmp_path / "pictures")
    assert run(*call) == 0
    printed = capsys.readouterr().out
    assert "95 % interval" in printed and "PSP@5" in printed
    document = json.loads(out.read_text())
    figures = {one["name"]: one for one in document["figures"]}
    assert figures["P@1"]["b"] == 100 and figures["P@1"]["low"] > 0 and figures["P@1"]["p"] < 0.01
    assert figures["macroF1@5"]["p"] is None
    won = document["queries_won"]["nDCG@1"]
    assert sum(won.values()) == document["queries"] == 10 and won["a"] == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        *("deciles.csv", "deciles.svg", "queries.csv", "queries.svg", "wins.csv", "wins.svg"),
    ]
    for path in (tmp_path / "pictures").glob("*.svg"):
        assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert "http" not in path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert (tmp_path / "pictures/wins.csv").read_text().splitlines()[1] == f"nDCG@1,0,{won['equal']},{won['b']}"
    first = out.read_text()
    assert run(*call) == 0 and out.read_text() == first


def test_a_pattern_is_several_seeds(two_files: Path, tiny_data: Path, tmp_path: Path, capsys):
    out = tmp_path / "out.json"
    assert run("compare", two_files / "random-*.npz", two_files / "perfect.npz", "--data", tiny_data, "--json", out) == 0
    assert "±" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["a"]) == 2


def test_two_runs_know_their_data(tiny_bundle: Path, tmp_path: Path, capsys):
    out = Path(shutil.copytree(tiny_bundle.parent, tmp_path / "run"))
    shutil.rmtree(out / "evaluations", ignore_errors=True)
    assert run("compare", out, out) == 2
    assert "`dexml evaluate" in capsys.readouterr().err
    assert run("evaluate", out) == 0
    assert run("compare", out, out / "bundle", "--json", tmp_path / "out.json") == 0
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert all(one["difference"] == 0 and one["p"] in (1, None) for one in figures)


def test_what_is_not_there_is_told(two_files: Path, tmp_path: Path, capsys):
    assert run("compare", tmp_path / "none", two_files / "perfect.npz") == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert run("compare", two_files / "random-0.npz", two_files / "perfect.npz") == 2
    assert "--data DIR is needed" in capsys.readouterr().err


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-9, 2e-9], [99.9, 100.0], [7.0, 123456.0]])
def test_bars_stay_inside(values: list[float]):
    svg = ET.fromstring(bar_chart("<&", "x", ["a", "b"], [("one", values), ("two", values[::-1])]))
    bars = [part for part in svg.iter() if part.tag == "rect"]
    assert len(bars) == 4
    for bar in bars:
        assert 0 <= float(bar.get("height", "nan")) <= 176 and float(bar.get("y", "nan")) >= 9.9
