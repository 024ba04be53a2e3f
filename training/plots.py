"""The pictures of an evaluation and of a comparison, each with the table that it was drawn from.

N queries, K answers of each; everything shown is in percent, but scores.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dexml import metrics
from dexml.metrics.rows import of_rows
from dexml.types import Int64Array, Positives
from training.bars import bar_chart
from training.chart import Series, legend, line_chart
from training.compare import Side, per_query, won

WINS = ("nDCG@1", "nDCG@5", "nDCG@10", "R@100")
BY_QUERY = "nDCG@10"  # what says how well a single query was answered
BLOCK = 4096  # rows at a time
BINS = 40  # of a histogram
RECALL = 10  # of the labels by frequency
BEST = "the most possible"

Table = tuple[tuple[str, ...], list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Plot:
    """A picture (SVG), named as its `file` of numbers: `table`, the heads and rows.

    `names` are those of its series, `painted` their classes where those are not line-1, line-2, …
    """

    file: str
    title: str
    svg: str
    names: tuple[str, ...]
    table: Table
    painted: tuple[str, ...] = ()

    def csv(self) -> str:
        """Return the table as CSV."""
        return csv_of(*self.table)

    def with_key(self) -> str:
        """Return the picture with the key of its series below, which a line chart has already."""
        return self.svg if "</p>" in self.svg else self.svg + legend(self.names, self.painted)


def csv_of(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV, numbers with six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return text.getvalue()


def curves(sides: Mapping[str, Sequence[Int64Array]], truth: Positives, weights: metrics.Float64Array | None) -> list[Plot]:
    """Return P, R, nDCG, PSP and hits @k for k to K, and precision against recall, a line for each side.

    A side has answers (N, K) of one seed or more, whose mean is drawn. P and R also have what no answers can exceed, since
    a query has n labels: min(n, k)/k and min(n, k)/n.
    """
    depth = min(ranked.shape[1] for answers in sides.values() for ranked in answers)
    ks = list(range(1, depth + 1))
    found = {side: _curves(answers, truth, weights, ks) for side, answers in sides.items()}
    counts = np.diff(truth.indptr)
    able = np.minimum(counts[:, None], np.arange(1, depth + 1))
    most = {"P": able.mean(axis=0) / ks, "R": (able / np.maximum(counts, 1)[:, None]).mean(axis=0)}
    plots = []
    kinds = {
        "P": "Precision",
        "R": "Recall",
        "nDCG": "nDCG",
        "PSP": "Propensity-scored precision",
        "hits": "Queries with a hit",
    }
    for kind, said in kinds.items():
        if kind == "PSP" and weights is None:
            continue
        lines = {side: of[kind] for side, of in found.items()}
        if kind in most:
            lines[BEST] = (100 * most[kind]).tolist()
        series = [Series(side, list(zip(ks, line, strict=True)), reference=side == BEST) for side, line in lines.items()]
        title = f"{said} @k"
        svg = line_chart(title, "k", series, logarithmic_x=True, hold=[(1, 0), (1, 100)])
        table = (("k", *lines), list(zip(ks, *lines.values(), strict=True)))
        plots.append(Plot(f"{kind.lower()}.csv", title, svg, tuple(lines), table))
    return [*plots, _precision_by_recall(found, ks)]


def _curves(
    answers: Sequence[Int64Array], truth: Positives, weights: metrics.Float64Array | None, ks: Sequence[int]
) -> dict[str, list[float]]:
    gained: Any = 0
    possible: Any = 0
    for ranked in answers:
        for start in range(0, len(truth), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(truth)))
            part = of_rows(ranked[rows], truth.take(rows), weights, ks)
            gained, possible = gained + part.gained.sum(axis=1), possible + part.possible.sum(axis=1)
    values = 100 * gained / np.where(possible > 0, possible, 1)
    kinds = list(dict.fromkeys(name.split("@")[0] for name in part.names))
    return dict(zip(kinds, values.reshape(len(kinds), len(ks)).tolist(), strict=True))


def _precision_by_recall(found: Mapping[str, Mapping[str, Sequence[float]]], ks: Sequence[int]) -> Plot:
    title = "Precision by recall"
    series = [Series(side, list(zip(of["R"], of["P"], strict=True))) for side, of in found.items()]
    columns = {f"{kind}, {side}": of[kind] for side, of in found.items() for kind in ("R", "P")}
    svg = line_chart(title, "recall, percent", series, hold=[(0, 0), (100, 100)])
    return Plot(
        "precision_by_recall.csv", title, svg, tuple(found), (("k", *columns), list(zip(ks, *columns.values(), strict=True)))
    )


def deciles(sides: Mapping[str, Side], counts: Int64Array) -> Plot:
    """Return the recall of ten groups of as many labels each, the most frequent first."""
    names = [str(number) for number in range(1, 11)]
    of_sides = {side: _recalls(metrics.deciles, of, counts) for side, of in sides.items()}
    title = f"Recall@{RECALL} by decile of frequency, percent"
    return _bars("deciles.csv", title, "decile of labels, the most frequent first", "decile", names, of_sides)


def bands(sides: Mapping[str, Side], counts: Int64Array) -> Plot:
    """Return the recall of labels with many training rows, with some, and with few."""
    of_sides = {side: _recalls(metrics.bands, of, counts) for side, of in sides.items()}
    title = f"Recall@{RECALL} of head, torso and tail, percent"
    return _bars("bands.csv", title, "labels by training rows", "band", ["head", "torso", "tail"], of_sides)


def _recalls(split: Any, side: Side, counts: Int64Array) -> list[float]:
    recalls = [[group.recall[RECALL] for group in split(tally, counts)] for tally in side.tallies]
    values: list[float] = np.mean(recalls, axis=0).tolist()
    return values


def _bars(file: str, title: str, x_name: str, head: str, names: Sequence[str], values: Mapping[str, Sequence[float]]) -> Plot:
    svg = bar_chart(title, x_name, names, list(values.items()))
    return Plot(file, title, svg, tuple(values), ((head, *values), list(zip(names, *values.values(), strict=True))))


def scores(found: Any, given: Any) -> Plot:
    """Return a histogram of the scores `given` (N, K) of right and of wrong answers; `found` bool (N, K) says which is which.

    Each of the two adds up to 100: there are many more wrong ones.
    """
    given = np.asarray(given, dtype=np.float64)
    there = np.isfinite(given)
    edges = np.histogram_bin_edges(given[there], BINS)
    counts = {name: np.histogram(given[there & of], edges)[0] for name, of in (("right", found), ("wrong", ~found))}
    title = "Scores of right and of wrong answers, percent of each"
    series = [Series(name, _steps(edges, 100 * count / max(count.sum(), 1)), filled=True) for name, count in counts.items()]
    svg = line_chart(title, "score", series, from_zero=True)
    rows = list(zip(edges[:-1].tolist(), edges[1:].tolist(), *(count.tolist() for count in counts.values()), strict=True))
    return Plot("scores.csv", title, svg, tuple(counts), (("from", "to", *counts), rows))


def by_score(found: Any, given: Any, true: int) -> Plot:
    """Return how precise answers are of at least a score, and which part of the `true` pairs of the split they find."""
    given = np.asarray(given, dtype=np.float64)
    there = np.isfinite(given)
    values = np.sort(given[there])
    right = np.sort(given[there & found])
    least = np.linspace(values[0], values[-1], 2 * BINS + 1)
    answers = len(values) - np.searchsorted(values, least)
    hits = len(right) - np.searchsorted(right, least)
    precision, recall = 100 * hits / np.maximum(answers, 1), 100 * hits / max(true, 1)
    title = "If only answers from a score on were given, percent"
    lines = {"precision": precision.tolist(), "recall": recall.tolist()}
    series = [Series(name, list(zip(least.tolist(), line, strict=True))) for name, line in lines.items()]
    svg = line_chart(title, "score", series, hold=[(float(least[0]), 0), (float(least[0]), 100)])
    rows = list(zip(least.tolist(), answers.tolist(), hits.tolist(), *lines.values(), strict=True))
    return Plot("by_score.csv", title, svg, tuple(lines), (("score", "answers", "right", *lines), rows))


def reliability(probabilities: Sequence[tuple[str, Any]], found: Any, k: int) -> list[Plot]:
    """Return how often answers of each probability are right, over the first `k` of each row, and where probabilities lie.

    `probabilities` are (name, float (N, K)) pairs, NaN where an answer is missing.
    """
    whole = ((0.0, 0.0), (100.0, 100.0))
    bins = {name: metrics.reliability(k, given, found) for name, given in probabilities}
    points = {
        name: list(zip((100 * of.confidence).tolist(), (100 * of.accuracy).tolist(), of.count.tolist(), strict=True))
        for name, of in bins.items()
    }
    series = [Series(name, [point[:2] for point in of], marked=True) for name, of in points.items()]
    title = f"Right answers by probability, the first {k}, percent"
    svg = line_chart(title, "probability, percent", [*series, Series("as it should be", whole, reference=True)], hold=whole)
    rows: list[tuple[Any, ...]] = [(name, *point) for name, of in points.items() for point in of]
    heads = ("probabilities", "mean probability", "right", "answers")
    edges = np.linspace(0, 1, BINS // 2 + 1)
    shares = {}
    for name, given in probabilities:
        first = given[:, :k]
        count = np.histogram(first[np.isfinite(first)], edges)[0]
        shares[name] = 100 * count / max(count.sum(), 1)
    of_shares = "Where the probabilities lie, percent of answers"
    steps = [Series(name, _steps(100 * edges, share), filled=True) for name, share in shares.items()]
    lie = line_chart(of_shares, "probability, percent", steps, from_zero=True)
    columns = [(100 * edges[:-1]).tolist(), (100 * edges[1:]).tolist(), *(share.tolist() for share in shares.values())]
    return [
        Plot("reliability.csv", title, svg, tuple(points), (heads, rows)),
        Plot("probabilities.csv", of_shares, lie, tuple(shares), (("from", "to", *shares), list(zip(*columns, strict=True)))),
    ]


def _steps(edges: Any, values: Any) -> list[tuple[float, float]]:
    """Return the outline of a histogram: each of its steps from edge to edge."""
    return list(zip(np.repeat(edges, 2)[1:-1].tolist(), np.repeat(values, 2).tolist(), strict=True))


def wins(a: Side, b: Side, names: tuple[str, str] = ("A", "B")) -> Plot:
    """Return for how many queries each side is better, by figure."""
    counts = [won(a, b, name) for name in WINS]
    said = (f"{names[0]} better", "equal", f"{names[1]} better")
    series = [(name, [float(of[key]) for of in counts]) for name, key in zip(said, ("a", "equal", "b"), strict=True)]
    title, painted = "Queries won", ("line-1", "line-6", "line-2")
    rows = [(name, of["a"], of["equal"], of["b"]) for name, of in zip(WINS, counts, strict=True)]
    table = (("figure", names[0].lower(), "equal", names[1].lower()), rows)
    return Plot("wins.csv", title, bar_chart(title, "figure", WINS, series, painted), said, table, painted)


def by_query(a: Side, b: Side, names: tuple[str, str] = ("A", "B")) -> Plot:
    """Return how far B is above A for each query, in order of that."""
    apart = 100 * per_query(a, b, BY_QUERY)
    name = f"{names[1]} − {names[0]}"
    title = f"{BY_QUERY} by query, {name}, percent"
    points = [(float(place), float(value)) for place, value in enumerate(np.sort(apart), 1)]
    svg = line_chart(title, "queries, sorted", [Series(name, points)])
    return Plot("queries.csv", title, svg, (name,), (("row", "difference"), list(enumerate(apart.tolist()))))
