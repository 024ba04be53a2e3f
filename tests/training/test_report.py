"""The report of a run: every figure is the history's, nothing is fetched, and it can be read while the run still goes on."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dexml import versions
from dexml.__main__ import main
from training import history, record, report
from training.chart import POINTS, Series, line_chart, shown
from training.config import Config


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def trained(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reported") / "run"
    settings = ["validation.fraction=0.3", "validation.refit=true", "training.patience=9", "name=<b>tiny</b>", f"out={out}"]
    assert run("train", tiny_config, *[part for setting in settings for part in ("--set", setting)]) == 0
    return out


class Page(HTMLParser):
    """Balanced tags, and what the page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link"):
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None: ...

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.words.append(text)


def test_a_trained_run_has_a_report_that_needs_no_other_file(trained: Path):
    text = (trained / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.fetched == ["data:,"] and "<script" not in text and "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text and "<b>tiny</b>" in page.words, "names are text, whatever they hold"
    titles = re.findall(r'aria-label="([^:]+):', text)
    assert titles == ["Loss", "Learning rate", "Gradient norm", report.COLLAPSE, "Validation, percent"]
    words = " ".join(page.words)
    facts = record.read(trained)
    assert facts is not None and facts["finished"] and facts["seed"] == 0 and facts["config"]["training"]["epochs"] == 6
    for said in (
        "finished",
        "training 1",
        "training 2",
        "training.weight_decay",
        "torch",
        facts["versions"]["torch"],
        "memory",
    ):
        assert said in words, said
    watched = [line for line in history.read(trained) if line["kind"] == "validation"]
    assert len(watched) == 6
    for line in watched:
        assert f"<td>{line['step']}</td><td>{line['P@1']:.2f}</td><td>{line['P@3']:.2f}</td><td>{line['P@5']:.2f}</td>" in text
    assert "P@1, validation" in words and "P@1, test" not in words


def test_the_bundle_says_config_seed_versions_and_commit_as_well(trained: Path):
    facts, manifest = record.read(trained), versions.current(versions.root_of(trained))[1]
    assert facts is not None
    told = manifest.training
    assert told.config["seed"] == 0 and Config.model_validate(told.config).seed == 0
    assert told.versions == facts["versions"] and told.versions["torch"] and told.python == facts["python"]
    assert told.commit == facts["commit"] and (told.commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", told.commit))


def test_a_commit_is_that_of_the_working_directory_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import subprocess

    from training.provenance import commit

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() is None
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "someone")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "someone@example.org")
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *arguments], check=True)
    clean = commit()
    assert clean is not None and re.fullmatch(r"[0-9a-f]{40}", clean)
    (tmp_path / "file").write_text("one")
    subprocess.run(["git", "add", "file"], check=True)
    assert commit() == f"{clean}-dirty"


def test_evaluate_adds_the_test_figures_and_other_data_does_not(trained: Path, tiny_data: Path, tmp_path: Path):
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    assert run("evaluate", out, "--data", tiny_data) == 0
    assert record.evaluations(out) == {}
    assert run("evaluate", out) == 0
    figures = record.evaluations(out)["test"]
    text = (out / "report.html").read_text(encoding="utf-8")
    assert f"<b>{figures['P@1']:.1f}</b><span>P@1, test</span>" in text and f"<td>{figures['PSP@5']:.2f}</td>" in text
    alone = Path(shutil.copytree(trained / "bundle", tmp_path / "bundle"))
    assert run("evaluate", alone) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "run"], "a bundle on its own leaves nothing behind"


def test_a_run_that_was_killed_is_reported_as_far_as_it_came(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    facts = json.loads((out / "run.json").read_text())
    facts["finished"] = False
    facts["sessions"].append({**facts["sessions"][0], "after": [1, 2]})
    (out / "run.json").write_text(json.dumps(facts))
    lines = (out / "history.jsonl").read_text().splitlines(keepends=True)
    (out / "history.jsonl").write_text("".join(lines[:5]) + lines[5][:30])
    (out / "report.html").unlink()
    assert run("report", out) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    text = (out / "report.html").read_text()
    Page(text)
    assert "not finished: step" in text and "resumed 1 time ·" not in text and "resumed 1 time" in text
    (out / "history.jsonl").unlink()
    assert run("report", out) == 0


def test_what_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("report", tmp_path) == 2
    assert "holds no run.json" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("{")
    assert run("report", tmp_path) == 2
    assert "run.json: damaged" in capsys.readouterr().err


def test_a_new_run_forgets_what_was_measured_of_the_old_one(trained: Path, tiny_config: Path, tmp_path: Path):
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    assert run("evaluate", out) == 0
    assert run("train", tiny_config, "--set", f"out={out}", "--set", "seed=3") == 0
    assert record.evaluations(out) == {}
    assert {line["phase"] for line in history.read(out)} == {1}


def heights(svg: str, shape: str) -> list[float]:
    return [float(point.split(",")[1]) for found in re.findall(shape, svg) for point in found.split()]


def test_a_chart_draws_few_points_of_many_and_the_range_of_what_it_averaged():
    points = [(float(step), 10.0 if step == 5_000 else 1.0) for step in range(10_000)]
    svg = line_chart("Loss", "step", [Series("loss", points)])
    Page(svg)
    assert len(heights(svg, r'<polyline[^>]*points="([^"]+)"')) == POINTS
    band = heights(svg, r'<polygon[^>]*points="([^"]+)"')
    assert min(band) < min(heights(svg, r'<polyline[^>]*points="([^"]+)"')), "a spike is not averaged away"


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [5.0, 5.0], [1e-12, 1e12], [-3.0, 4.0], [99.99, 100.0], [1e-30, 2e-30], [0.31, 0.32]]
)
def test_charts_of_odd_values_are_charts(values: list[float], logarithmic: bool):
    svg = line_chart("<&", "step", [Series('"', list(enumerate(values)), marked=True)], logarithmic=logarithmic)
    Page(svg)
    assert "nan" not in svg and "inf" not in svg
    places = [float(value) for value in re.findall(r'c[xy]="([^"]+)"', svg)]
    assert len(places) == 2 * len(values) and all(0 <= place <= 380 for place in places)
    assert 1 <= svg.count('class="grid"') <= 12


def test_no_points_no_chart():
    assert line_chart("Loss", "step", [Series("loss", [])]) == ""


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (0.30000000000000004, "0.3"), (1200, "1,200"), (5e-5, "5e-5"), (250000, "2.5e5"), (-0.5, "-0.5")],
)
def test_numbers_on_an_axis(value: float, said: str):
    assert shown(value) == said


def test_the_template_has_a_place_for_everything():
    empty = {
        "name": "n", "created": "2026-01-01T00:00:00+00:00", "finished": False, "config": {}, "commit": None, "python": "3",
        "versions": {}, "machine": {}, "data": {"path": "p", "rows": 1, "labels": 1}, "phases": {},
        "sessions": [{"seconds": {}}],
    }  # fmt: skip
    assert "$" not in re.sub(r"<style>.*</style>", "", report.page(empty, [], {}), flags=re.DOTALL)
