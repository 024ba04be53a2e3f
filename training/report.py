"""report.html of a run: what it learned, how, on what and in what time, in one file that needs no other.

It is made of run.json, history.jsonl and evaluations/, so that a run that goes on, or was killed, can be read as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dexml.errors import InputError
from training import history, record
from training import page as parts
from training.chart import Series, line_chart
from training.display import clock, rounded
from training.identity import flat

FILE = "report.html"
CUTOFFS = (1, 3, 5)
COLLAPSE = "Positives whose gradient a number type loses, percent"


def write(out: Path) -> Path:
    """Write OUT/report.html and return it. Raises InputError where `out` is no folder of a training run."""
    facts = record.read(out)
    if facts is None:
        raise InputError(f"report: {out} holds no {record.FILE}; `dexml train CONFIG.toml` leaves one in its `out` folder")
    path = out / FILE
    record.write_text(path, page(facts, history.read(out), record.evaluations(out)))
    return path


def page(facts: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page for what `record.read`, `history.read` and `record.evaluations` found."""
    steps = [line for line in lines if line.get("kind") == "step"]
    watched = [line for line in lines if line.get("kind") == "validation"]
    content = [parts.charts(_charts(steps, watched)), *_tables(facts, steps, watched, evaluations)]
    return parts.document(str(facts["name"]), _status(facts, steps), _headlines(facts, steps, watched, evaluations), content)


def _status(facts: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> str:
    """Return in words how far the run is, and since when."""
    last = steps[-1] if steps else {"phase": 1, "step": 0}
    phases = facts["phases"]
    total = phases.get(str(last["phase"]), {}).get("steps", "?")
    where = "finished" if facts["finished"] else f"not finished: step {last['step']} of {total}"
    if not facts["finished"] and len(phases) > 1:
        where += f" of training {last['phase']}"
    again = len(facts["sessions"]) - 1
    resumed = f" · resumed {again} time{'s' * (again > 1)}" if again else ""
    return f"{where} · started {facts['created'].replace('T', ' ').replace('+00:00', ' UTC')}{resumed}"


def _headlines(
    facts: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    watched: Sequence[Mapping[str, Any]],
    evaluations: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, str]]:
    """Return (value, name) of what one looks for first: test figures, or else the last validation's, and the time."""
    found: list[tuple[str, str]] = []
    if evaluations:
        split = next(iter(evaluations))
        found += [(f"{evaluations[split][f'P@{k}']:.1f}", f"P@{k}, {split}") for k in CUTOFFS]
        found.append((f"{evaluations[split]['R@100']:.1f}", f"R@100, {split}"))
    elif watched:
        found += [(f"{watched[-1][f'P@{k}']:.1f}", f"P@{k}, validation") for k in CUTOFFS]
    if steps:
        found.append((f"{steps[-1]['loss']:.3f}", "last loss"))
        seconds = max(sum(step["seconds"] for step in steps), 1e-9)
        found.append((rounded(sum(step["queries"] for step in steps) / seconds), "queries a second"))
        found.append((rounded(sum(step["scores"] for step in steps) / seconds), "label scores a second"))
    found.append((clock(sum(session["seconds"].get("total", 0.0) for session in facts["sessions"])), "in all"))
    return found


def _charts(steps: Sequence[Mapping[str, Any]], watched: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yield the cards with a chart each; a run of several trainings has a line for each."""
    phases = sorted({step["phase"] for step in steps})
    names = {phase: f"training {phase}" for phase in phases}
    of_steps = {"Loss": "loss", "Learning rate": "rate", "Gradient norm": "gradient_norm"}
    for title, key in of_steps.items():
        series = [Series(names[phase], [(s["step"], s[key]) for s in steps if s["phase"] == phase]) for phase in phases]
        yield parts.card(title, line_chart(title, "step", series, logarithmic=key == "gradient_norm", from_zero=key == "rate"))
    yield parts.card(COLLAPSE, line_chart(COLLAPSE, "step", list(_collapsed(steps, names)), from_zero=True))
    several = len({line["phase"] for line in watched}) > 1
    series = [
        Series(
            f"P@{k}, {names.get(phase, phase)}" if several else f"P@{k}",
            [(line["step"], line[f"P@{k}"]) for line in watched if line["phase"] == phase],
            marked=True,
        )
        for phase in sorted({line["phase"] for line in watched})
        for k in CUTOFFS
    ]
    yield parts.card("Validation, percent", line_chart("Validation, percent", "step", series))


def _collapsed(steps: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> Iterable[Series]:
    """Yield a line for each number type, and training where there are several."""
    for phase, name in names.items():
        told = [step for step in steps if step["phase"] == phase and "collapsed" in step]
        for number in told[0]["collapsed"] if told else ():
            points = [(step["step"], 100 * step["collapsed"][number]) for step in told]
            yield Series(number if len(names) == 1 else f"{number}, {name}", points)


def _tables(
    facts: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    watched: Sequence[Mapping[str, Any]],
    evaluations: Mapping[str, Mapping[str, Any]],
) -> Iterable[str]:
    """Yield the sections below the charts."""
    if evaluations:
        figures = [[split, *_percent(document)] for split, document in evaluations.items()]
        names = [key for key in next(iter(evaluations.values())) if "@" in key]
        yield parts.numbers("Measured through the path that serves, percent", ["split", *names], figures)
    if watched:
        rows = [[line["epoch"], line["step"], *(f"{line[f'P@{k}']:.2f}" for k in CUTOFFS)] for line in watched]
        yield parts.numbers("Every validation, percent", ["epoch", "step", *(f"P@{k}" for k in CUTOFFS)], rows, folded=True)
    data = {"path": facts["data"]["path"], "training rows": facts["data"]["rows"], "labels": facts["data"]["labels"]}
    several = len(facts["phases"]) > 1
    phases = [parts.facts(f"Training {phase}" if several else "Training", about) for phase, about in facts["phases"].items()]
    yield parts.columns([parts.facts("Data", data), parts.facts("Time", _times(facts)), *phases])
    machine = {key: value for key, value in facts["machine"].items() if value is not None}
    code = {"commit": facts["commit"] or "none", "Python": facts["python"], **facts["versions"]}
    yield parts.facts("Machine and code", {**machine, **code}, folded=True)
    yield parts.facts("Config", flat(facts["config"]), folded=True)


def _times(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return seconds by what they were spent on, over all sessions, in words."""
    spent: dict[str, float] = {}
    for session in facts["sessions"]:
        for what, seconds in session["seconds"].items():
            spent[what] = spent.get(what, 0.0) + seconds
    return {what: clock(seconds) for what, seconds in sorted(spent.items(), key=lambda item: item[0] == "total")}


def _percent(document: Mapping[str, Any]) -> list[str]:
    return [f"{value:.2f}" for key, value in document.items() if "@" in key]
