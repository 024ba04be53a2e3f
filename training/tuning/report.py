"""What a study leaves to look at: report.html, with its course, what mattered and what costs what, and trials.csv."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from training import page as parts
from training.bars import bar_chart
from training.chart import Series, legend, line_chart
from training.plots import csv_of
from training.record import write_text
from training.tuning.goals import HIGH, UNITS, Goals, shown
from training.tuning.space import words
from training.tuning.study import Evaluation, Study

FILE, TABLE = "report.html", "trials.csv"
BEST = 15  # evaluations in the table above
PICTURES = 3  # of figures against each other, and of what mattered


def write(out: Path, study: Study, title: str, chosen: Evaluation | None) -> Path:
    """Write OUT/report.html and OUT/trials.csv and return the former; `chosen` is the evaluation that was taken."""
    evaluations = study.evaluations()
    write_text(out / TABLE, csv_of(*_table(study, evaluations, digits=False)))
    path = out / FILE
    write_text(path, _page(study, title, evaluations, chosen))
    return path


def _page(study: Study, title: str, evaluations: Sequence[Evaluation], chosen: Evaluation | None) -> str:
    made = [one for one in evaluations if one.state == "complete"]
    status = (
        f"{study.goals} · {study.sampler}, seed {study.seed} · {len(evaluations):,} of {len(study.space):,} points evaluated"
    )
    figures = [] if chosen is None else [(shown(name, value), _named(name)) for name, value in chosen.figures.items()]
    searched = parts.facts("Searched", {key: ", ".join(map(str, values)) for key, values in study.space.axes.items()})
    taken = [] if chosen is None else [parts.facts(f"Chosen: evaluation {chosen.number}", chosen.settings)]
    content = [
        parts.charts([*_history(study.goals, made), *_importance(study), *_against(study.goals, made)]),
        parts.columns([*taken, searched]),
    ]
    ranked = sorted(made, key=lambda one: study.goals.badness(one.figures))[:BEST]
    content.append(
        parts.numbers("Best evaluations", *_table(study, study.front() if len(study.goals.objectives) > 1 else ranked))
    )
    content.append(parts.numbers("All evaluations", *_table(study, evaluations), folded=True, file=TABLE))
    return parts.document(title, status, figures, content)


def _history(goals: Goals, made: Sequence[Evaluation]) -> Iterator[str]:
    """Yield a chart of each objective over the evaluations; with one, the best within the bounds so far."""
    for name in goals.objectives:
        series = [Series("each", [(one.number, one.figures[name]) for one in made], joined=False)]
        if len(goals.objectives) == 1:
            best: Evaluation | None = None
            points = []
            for one in made:
                if best is None or goals.badness(one.figures) < goals.badness(best.figures):
                    best = one
                if goals.kept(best.figures):
                    points.append((float(one.number), best.figures[name]))
            series.append(Series("best so far" if not goals.bounds else "best within the bounds", points))
        title = f"{_named(name)} by evaluation"
        yield parts.card(title, line_chart(title, "evaluation", series, logarithmic=name not in HIGH))


def _importance(study: Study) -> Iterator[str]:
    """Yield a chart of how much of each objective's and bounded figure's variance a key explains."""
    names = list(dict.fromkeys((*study.goals.objectives, *study.goals.bounds)))[:PICTURES]
    found = [(name, given) for name in names if (given := study.importance(name))]
    if found:
        keys = list(study.space.axes)
        series = [(name, [given[key] for key in keys]) for name, given in found]
        short = [key.rsplit(".", 1)[-1] for key in keys]
        chart = bar_chart("Importance", "share of the variance (fANOVA)", short, series)
        yield parts.card("What mattered", chart + legend([name for name, _ in found]))


def _against(goals: Goals, made: Sequence[Evaluation]) -> Iterator[str]:
    """Yield charts of figures against each other, with the line of what no other evaluation beats in both."""
    names = list(dict.fromkeys((*goals.objectives, *goals.bounds)))
    if len(names) == 1 and made:
        names.append("seconds" if "seconds" in made[0].figures else "cost" if names[0] in HIGH else "recall")
    for a, b in list(combinations(names, 2))[:PICTURES]:
        x, y = (a, b) if a not in HIGH else (b, a)
        pair = Goals((y, x), {})
        points = [(one.figures[x], one.figures[y]) for one in made]
        front = [
            (one.figures[x], one.figures[y])
            for one in made
            if not any(pair.dominated(one.figures, other.figures) for other in made)
        ]
        series = [Series("each", points, joined=False), Series("not beaten", sorted(set(front)), marked=True)]
        title = f"{y} by {x}"
        yield parts.card(title, line_chart(title, _named(x), series, logarithmic_x=x not in HIGH))


def _table(study: Study, evaluations: Sequence[Evaluation], *, digits: bool = True) -> tuple[tuple[str, ...], list[Any]]:
    """Return heads and rows; with the `digits` that a figure is worth, or all of them."""
    names = list(next((one.figures for one in evaluations if one.figures), {}))
    rows = []
    for one in evaluations:
        figures = [shown(name, one.figures[name]) if digits else repr(one.figures[name]) for name in names if one.figures]
        left = [""] * (len(names) - len(figures))
        rows.append((one.number, *one.settings.values(), *figures, *left, one.why or one.state))
    return ("evaluation", *study.space.axes, *names, "state"), rows


def line(one: Evaluation, goals: Goals) -> str:
    """Return an evaluation in words."""
    if one.state != "complete":
        return f"{words(one.settings)}: {one.why or 'cut short, worse than the median'}"
    names = list(dict.fromkeys((*goals.objectives, *goals.bounds)))
    return f"{words(one.settings)}: " + " · ".join(f"{name} {shown(name, one.figures[name])}" for name in names)


def _named(name: str) -> str:
    return f"{name}, {UNITS[name]}" if name in UNITS else name
