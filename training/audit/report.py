"""`dexml audit --report FILE`: the audit as one page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from dexml.types import Split
from index.live import LiveLabels
from training import page, provenance
from training.audit import tables
from training.audit.attack import WARM_UP
from training.audit.measure import RANDOM, Audit
from training.bars import bar_chart
from training.chart import Series, legend, line_chart

SHOWN = 12  # queries


def html(name: str, status: str, audit: Audit, split: Split, labels: LiveLabels, facts: Mapping[str, Any]) -> str:
    """Return the page about the bundle `name`; `facts` say what was audited."""
    content = [*_pushes(audit), *_queries(audit, split, labels), *_labels(audit, labels), *_reach(audit), *_attacks(audit)]
    versions = provenance.facts()
    about = {**facts, "commit": versions["commit"] or "none", **versions["versions"]}
    return page.document(f"Audit of {name}", status, _headlines(audit), [*content, page.facts("Settings", about, folded=True)])


def _headlines(audit: Audit) -> list[tuple[str, str]]:
    found = []
    for name, degrees in list(tables.angles(audit).items())[:2]:
        if degrees:
            found.append((f"{np.median(degrees):.2f}°", f"median push to {name}"))
    for of in audit.reach:
        if of.k == 10:
            found.append((f"{100 * of.count(True) / len(of.pushes):.0f} %", f"lists of 10 {of.kind} reachable"))
    for strike in audit.strikes:
        if strike.k == 5:
            found.append((f"{100 * strike.attacked.rate:.0f} %", f"{strike.way} succeeds, K = 5"))
    return found


def _pushes(audit: Audit) -> list[page.Group]:
    series = []
    for name, degrees in tables.angles(audit).items():
        there = np.sort(np.array(degrees)[np.isfinite(degrees)])
        shares = 100 * np.arange(1, len(there) + 1) / max(len(degrees), 1)
        series.append(Series(name, list(zip(there.tolist(), shares.tolist(), strict=True))))
    title = "Queries whose answer a push changes, percent"
    drawn = line_chart(title, "push, degrees", series, from_zero=True, hold=[(0, 0), (0, 100)])
    heads, rows = tables.of_pushes(audit)
    note = (
        "How far a query has to turn, at the least, until its answer changes: the angle from the query's row to the nearest "
        "one that is answered otherwise. The first two are exact boundaries; the others are the nearest rows that are answered "
        "with exactly that list."
    )
    parts = [page.columns([page.card(title, drawn, level=3), page.numbers("Smallest pushes", heads, rows, level=3)])]
    return [page.Group("How little changes an answer", note, parts)] if rows and audit.orders else []


def _queries(audit: Audit, split: Split, labels: LiveLabels) -> list[page.Group]:
    shown = []
    for place in tables.fragile(audit)[:SHOWN]:
        row = int(audit.rows[place])
        text = " ".join(split.texts[row].split())
        changes = (tables.said(audit.orders[place], labels), f"new: {tables.said(audit.entries[place], labels)}")
        lines = "".join(f"<li>{escape(change)}</li>" for change in changes)
        short = escape(text if len(text) <= 300 else f"{text[:299]}…")
        shown.append(f'<li><p class="query">{short}</p><p class="soft">row {row}</p><ul>{lines}</ul></li>')
    note = "The queries whose first labels take the smallest push to change, and which labels change places."
    return [page.Group("Most fragile queries", note, [f'<ol class="queries">{"".join(shown)}</ol>'])] if shown else []


def _labels(audit: Audit, labels: LiveLabels) -> list[page.Group]:
    if not audit.entries:
        return []
    parts = []
    for side, title in (("rises", "Come in most easily"), ("falls", "Are pushed out most easily")):
        heads, rows = tables.of_labels(audit, labels, side)
        parts.append(page.numbers(title, heads, rows, level=3))
    note = (
        f"For each query one label is the nearest to come in among the first {audit.asked.top}, and one the nearest to go. "
        "A label that comes in for many queries is a hub."
    )
    return [page.Group("Most fragile labels", note, [page.columns(parts)])]


def _reach(audit: Audit) -> list[page.Group]:
    if not audit.reach:
        return []
    ks = list(dict.fromkeys(of.k for of in audit.reach))
    kinds = list(dict.fromkeys(of.kind for of in audit.reach))
    shares = {(of.kind, of.k): 100 * of.count(True) / len(of.pushes) for of in audit.reach}
    series = [(kind, [shares.get((kind, k), 0.0) for k in ks]) for kind in kinds]
    title = "Ordered lists that some query is answered with, percent"
    drawn = bar_chart(title, "labels in the list", [str(k) for k in ks], series) + legend(kinds)
    heads, rows = tables.of_reach(audit)
    note = (
        "Which ordered lists a query can be answered with at all, whatever its text. Each list is returned by the index for a "
        f"row that was found, with a margin of {audit.asked.margin:g} of cosines, or proved to be out of reach by weights on "
        f"inequalities (--json has them). {RANDOM.capitalize()} are drawn from all; the others from the first 2K answers."
    )
    parts = [page.columns([page.card(title, drawn, level=3), page.numbers("Reachability", heads, rows, level=3)])]
    return [page.Group("Which lists can be returned", note, parts)]


def _attacks(audit: Audit) -> list[page.Group]:
    if not audit.strikes:
        return []
    series = []
    for strike in audit.strikes:
        shares = strike.attacked.curve(audit.asked.iterations)
        points = [(float(number), 100 * share) for number, share in enumerate(shares, 1)]
        series.append(Series(f"{strike.way}, K = {strike.k}", points))
    title = "Attacks that have succeeded, percent"
    drawn = line_chart(title, "iteration", series, from_zero=True, hold=[(1, 0), (1, 100)])
    heads, rows = tables.of_attacks(audit)
    queries = len(audit.strikes[0].attacked.reached)
    note = (
        f"Token embeddings of {queries} queries perturbed until the answer is exactly K random labels in order: one "
        f"back-propagation an iteration, {audit.asked.iterations} of them, the optimiser anew after {WARM_UP}. A text cannot "
        "be perturbed like that; what is measured is how smooth the tower is."
    )
    parts = [page.columns([page.card(title, drawn, level=3), page.numbers("Attacks", heads, rows, level=3)])]
    return [page.Group("Attacks on token embeddings", note, parts)]
