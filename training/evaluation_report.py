"""`dexml evaluate --report DIR`: what answers are worth and what they cost, as DIR/evaluation.html and the tables beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from data.scores import write_scores
from dexml import metrics
from dexml.errors import InputError
from dexml.types import Int64Array
from index.retriever import Retriever
from training import page, plots, provenance, record
from training.calibration import Measured
from training.compare import LEVEL, Side, compare, per_query, rows
from training.display import rounded
from training.evaluate import BATCH, Evaluation
from training.queries import cards, table
from training.scores import Judge, by_frequency, files_of

FILE = "evaluation.html"
DEPTH = 100
OURS, THEIRS = "this run", "baseline"
WORST = 8  # queries shown; LISTED of them in the file
LISTED = 200
FIRST = 5  # answers of each query whose probabilities are judged: as many as one looks at
TABLES = (
    "figures p r ndcg psp hits precision_by_recall deciles bands frequency scores by_score reliability probabilities "
    "calibration wins queries differences worst"
).split()


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers to the judge's rows: `ranked` (N, K) with `scores` (N, K), and what probabilities they came with.

    `name` says whose they are, `speed` and `about` what they cost and what gave them, where that is known.
    """

    name: str
    ranked: Int64Array
    scores: Any
    probabilities: Measured | None = None
    speed: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of_bundle(retriever: Retriever, found: Evaluation) -> Answers:
        """Return what the path that serves answered."""
        total, queries = found.seconds["total"], found.sizes["queries"]
        stages = {
            f"of it, {stage}": f"{spent:.2f} s ({100 * spent / total:.0f} %)"
            for stage, spent in found.seconds.items()
            if stage != "total"
        }
        told: dict[str, Any] = retriever.describe()
        machine = provenance.machine()
        about = {
            "model": told["model"],
            "version": told["version"],
            "published": told["created"].replace("T", " ").replace("+00:00", " UTC"),
            "encoder": told["encoder"],
            "reranker": told["reranker"],
            "kernels": told["kernels"],
            "temperature": told["temperature"],
            "longest query": f"{told['max_tokens']:,} tokens",
            "labels": told["labels"],
            "dimension": told["dimension"],
            "label rows": f"{4 * told['labels'] * told['dimension'] / 1e6:,.1f} MB",
            "bundle": f"{found.sizes['bundle_bytes'] / 1e6:,.1f} MB",
        }
        speed = {
            "queries per second": rounded(queries / total),
            "a query": f"{1000 * total / queries:.2f} ms, in batches of {BATCH}",
            "in all": f"{total:.2f} s",
            **stages,
            "index": ", ".join(f"{key} {value}" for key, value in told["index"].items()),
            "processor": machine["processor"],
            "cores": machine["cores"],
            "GPU": machine["gpu"],
        }
        return Answers(retriever.bundle.manifest.name, found.ranked, found.scores, found.probabilities, speed, about)


class _Files(dict[str, str]):
    """The tables beside the page, by file name."""

    def card(self, plot: plots.Plot) -> str:
        """Return a plot's card, its table kept for writing."""
        self[plot.file] = plot.csv()
        return page.card(plot.title, plot.with_key(), level=3, table=plot.file)

    def cards(self, drawn: Sequence[plots.Plot]) -> str:
        """Return cards side by side."""
        return page.charts(self.card(plot) for plot in drawn)


def check(folder: Path) -> None:
    """Raise InputError where no report can be left in `folder`, before the work that makes it."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--report: {folder} is no folder")


def write(folder: Path, judge: Judge, split: str, answers: Answers, baseline: str | None = None) -> Path:
    """Write the report into `folder` and return its page; the answers are kept as SPLIT.npz, a baseline for another time.

    `baseline` is a run or report folder, a score file, or a pattern that matches several, one a seed.
    """
    theirs = [] if baseline is None else [judge.ranked(path, DEPTH) for path in files_of(baseline, split)]
    ranked = {OURS: [answers.ranked]} | ({THEIRS: theirs} if theirs else {})
    sides = {name: Side.of(of, judge.split.positives, judge.weights) for name, of in ranked.items()}
    tally = metrics.measure(answers.ranked, judge.split.positives, judge.weights)
    files = _Files()
    content = [
        _figures(tally, judge, files),
        page.Group(
            "By number of answers",
            "What the first k answers are worth, in percent. A query of n labels has at most n right answers: the dashed lines "
            "are the most possible.",
            [files.cards(plots.curves(ranked, judge.split.positives, judge.weights))],
        ),
        *_frequency(tally, sides, judge, files),
        *_confidence(answers, judge, files),
        *_baseline(sides, theirs, f"{baseline}", judge, answers, files),
        _worst(sides[OURS], judge, answers, files),
        *_cost(answers),
    ]
    measured = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    status = f"{judge.source} · {split} · {len(judge.split):,} queries, {len(judge.labels):,} labels · {measured}"
    text = page.document(f"Evaluation of {answers.name}", status, _headlines(tally, answers, judge), content)
    if (folder / FILE).is_file():  # what an earlier report left and this one has not
        for name in {f"{name}.csv" for name in TABLES} - set(files):
            (folder / name).unlink(missing_ok=True)
    for name, csv in files.items():
        record.write_text(folder / name, csv)
    record.write_text(folder / FILE, text)
    write_scores(folder / f"{split}.npz", answers.ranked, answers.scores.astype(np.float32), len(judge.labels))
    return folder / FILE


def _headlines(tally: metrics.Tally, answers: Answers, judge: Judge) -> list[tuple[str, str]]:
    figures = tally.figures()
    found: list[tuple[str, str]] = []
    found += [(f"{figures[name]:.1f}", name) for name in ("P@1", "P@3", "P@5", "nDCG@5", "R@100", "PSP@5") if name in figures]
    if answers.probabilities is not None:
        way, given = list(answers.probabilities.probabilities.items())[-1]
        found.append((f"{metrics.ece_at(FIRST, given, answers.probabilities.hits):.3f}", f"ECE@{FIRST}, {way}"))
    if "queries per second" in answers.speed:
        found.append((answers.speed["queries per second"], "queries a second"))
    return found


def _figures(tally: metrics.Tally, judge: Judge, files: _Files) -> page.Group:
    figures = tally.figures()
    kinds = list(dict.fromkeys(name.split("@")[0] for name in figures))
    heads = ("@", *(str(k) for k in tally.cutoffs))
    values = [(kind, *(figures[f"{kind}@{k}"] for k in tally.cutoffs)) for kind in kinds]
    files["figures.csv"] = plots.csv_of(heads, values)
    said = "In percent, of the first k answers. Coverage and macro-averages are means over labels, the others over queries."
    if judge.weights is not None:
        a, b = judge.propensity
        said += f" PSP, PSnDCG and PSR weigh rare labels more (propensities with A = {a:g}, B = {b:g})."
    shown = [(kind, *(f"{value:.2f}" for value in of)) for kind, *of in values]
    return page.Group("Figures", said, [page.numbers("Every metric @k", heads, shown, level=3, file="figures.csv")])


def _frequency(tally: metrics.Tally, sides: Mapping[str, Side], judge: Judge, files: _Files) -> Iterator[page.Group]:
    if judge.counts is None:
        return
    note = (
        "How well labels are found that training rows name often, and seldom: ten groups of as many labels, then the head "
        f"(named by {metrics.groups.HEAD} training rows or more), the torso ({metrics.groups.TORSO} or more) and the tail."
    )
    drawn = files.cards([plots.deciles(sides, judge.counts), plots.bands(sides, judge.counts)])
    groups = [
        *(replace(of, name=f"decile {of.name}") for of in metrics.deciles(tally, judge.counts)),
        *metrics.bands(tally, judge.counts),
    ]
    heads, values = by_frequency(groups, tally.cutoffs)
    columns = [f"{of}@{k}" for of in ("recall", "precision", "part of P") for k in tally.cutoffs]
    files["frequency.csv"] = plots.csv_of(
        ("group", "labels", "seen least", "seen most", "true", *columns),
        [
            (of.name, of.labels, *of.seen, of.true, *of.recall.values(), *of.precision.values(), *of.part.values())
            for of in groups
        ],
    )
    yield page.Group(
        "By label frequency",
        note,
        [drawn, page.numbers("Groups of labels", ("group", *heads), values, level=3, file="frequency.csv")],
    )


def _confidence(answers: Answers, judge: Judge, files: _Files) -> Iterator[page.Group]:
    found = metrics.hits(answers.ranked, judge.split.positives)
    if not np.isfinite(answers.scores).any():
        return
    parts = []
    note = "Right answers should score higher than wrong ones: the less the two overlap, the more a score says."
    true = int(judge.split.positives.indptr[-1])
    drawn = [plots.scores(found, answers.scores), plots.by_score(found, answers.scores, true)]
    if (given := answers.probabilities) is not None:
        note += (
            " Of the answers with a probability of 30 percent, 30 percent should be right: points on the dashed line. Above "
            "it, answers are right more often than their probability says. The softmax is that over all labels."
        )
        ways = list(given.probabilities.items())
        drawn = [*plots.reliability(ways, given.hits, FIRST), *drawn]
        heads = (
            "probabilities",
            *(f"ECE@{k}" for k in (1, 3, FIRST, 10)),
            f"adaptive ECE@{FIRST}",
            f"Brier@{FIRST}",
            f"log loss@{FIRST}",
        )
        errors = [
            (
                way,
                *(metrics.ece_at(k, of, given.hits) for k in (1, 3, FIRST, 10)),
                metrics.adaptive_ece_at(FIRST, of, given.hits),
                metrics.brier_at(FIRST, of, given.hits),
                metrics.log_loss_at(FIRST, of, given.hits),
            )
            for way, of in ways
        ]
        files["calibration.csv"] = plots.csv_of(heads, errors)
        shown = [(way, *(f"{value:.4f}" for value in of)) for way, *of in errors]
        parts.append(page.numbers("Calibration error", heads, shown, level=3, file="calibration.csv"))
    yield page.Group("Scores" if given is None else "Scores and probabilities", note, [files.cards(drawn), *parts])


def _baseline(
    sides: Mapping[str, Side], theirs: Sequence[Int64Array], name: str, judge: Judge, answers: Answers, files: _Files
) -> Iterator[page.Group]:
    if not theirs:
        return
    a, b = sides[THEIRS], sides[OURS]
    found = compare(a, b)
    files["differences.csv"] = plots.csv_of(
        ("figure", THEIRS, OURS, "difference", "low", "high", "p"),
        [(one.name, one.a, one.b, one.difference, one.low, one.high, one.p) for one in found],
    )
    heads = ("figure", THEIRS, OURS, "difference", f"{100 * LEVEL:.0f} % interval", "p")
    note = (
        f"The same queries, answered by {name} as well. The interval holds the true difference 95 times in 100 (paired "
        "bootstrap); p says how likely a difference as far from 0 is by luck."
    )
    apart = per_query(a, b, plots.BY_QUERY)
    drawn = files.cards([plots.wins(b, a, (OURS, THEIRS)), plots.by_query(a, b, (THEIRS, OURS))])
    said = [drawn, page.numbers("Differences, percent", heads, rows(found), level=3, file="differences.csv")]
    order = np.argsort(apart, kind="stable")
    columns = {OURS: (answers.ranked, answers.scores), THEIRS: (theirs[0], None)}
    for title, chosen in (("Lost most", order[apart[order] < 0]), ("Won most", order[::-1][apart[order[::-1]] > 0])):
        if len(chosen):
            shown = cards(
                chosen[:WORST], judge, columns, {int(row): f"{100 * apart[row]:+.0f} points" for row in chosen[:WORST]}
            )
            said.append(page.section(title, shown, level=3, folded=True))
    yield page.Group("Against the baseline", note, said)


def _worst(side: Side, judge: Judge, answers: Answers, files: _Files) -> page.Group:
    """Return the queries answered worst; of those answered equally badly, the surest mistakes come first."""
    earned = side.gained[0, side.names.index(plots.BY_QUERY)]
    asked = np.flatnonzero(np.diff(judge.split.positives.indptr) > 0)
    order = asked[np.lexsort((-answers.scores[asked, 0], earned[asked]))]
    heads, listed = table(order[:LISTED], judge, answers.ranked, plots.BY_QUERY, 100 * earned)
    files["worst.csv"] = plots.csv_of(heads, listed)
    said = {int(row): f"{plots.BY_QUERY} {100 * earned[row]:.1f}" for row in order[:WORST]}
    note = (
        f"The lowest {plots.BY_QUERY} first; of equal ones, those whose first answer scores highest. Not every one is a "
        "mistake: labels that annotators overlooked look like this too."
    )
    shown = cards(order[:WORST], judge, {OURS: (answers.ranked, answers.scores)}, said)
    return page.Group("Worst queries", note, [shown, page.link("worst.csv")])


def _cost(answers: Answers) -> Iterator[str | page.Group]:
    if answers.speed:
        parts = [page.facts("Speed", answers.speed, level=3), page.facts("Model and size", answers.about, level=3)]
        note = "Measured while the figures were, through the path that serves, after a first query."
        yield page.Group("Speed and size", note, [page.columns(parts)])
    code, machine = provenance.facts(), {key: value for key, value in provenance.machine().items() if value is not None}
    versions = {"commit": code["commit"] or "none", "Python": code["python"], **code["versions"]}
    yield page.facts("Machine and code", {**machine, **versions}, folded=True)
