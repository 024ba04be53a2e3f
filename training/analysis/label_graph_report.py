"""`dexml analyze labels`: the graph as tables, as a document, and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dexml.types import LabelTable
from training import page, provenance
from training.analysis.drawing import drawn
from training.analysis.label_graph import Found
from training.analysis.ntk_report import Table
from training.chart import Series, line_chart


def names(found: Found, labels: LabelTable) -> list[str]:
    """Return a name for each of the graph's labels (d): its text, or its id."""
    return [" ".join((labels.texts[number] or labels.ids[number]).split()) for number in found.labels.tolist()]


def of_edges(found: Found, labels: LabelTable, most: int) -> Table:
    """Return the strongest edges, the rows of both ends, and the share of each end's rows that the other shares."""
    shown = names(found, labels)
    rows: list[tuple[str, ...]] = []
    for one, other in found.edges[:most].tolist():
        cells = (f"{found.weights[one, other]:.2f}", f"{found.counts[one]:,}", f"{found.counts[other]:,}")
        rows.append((shown[one][:60], shown[other][:60], *cells))
    return ("from", "to", "weight", "rows", "rows of the other"), rows


def caveat(found: Found) -> str:
    """Return in words how far the direction of the edges may be trusted."""
    agreement = found.agreement()
    sortable = f"Varsortability is {found.sortable:.2f}. " if np.isfinite(found.sortable) else ""
    if agreement is None:
        return f"{sortable}Directions of a logistic graph of 0 and 1 are weak: every order of the labels can say the same."
    total, same, turned = agreement
    return (
        f"{sortable}Of standardised columns the search makes {total} edges: {same} of these the same way round, {turned} "
        "turned round. Edges that turn with the scale say that labels go together, and not which one comes first."
    )


def document(found: Found, labels: LabelTable, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of it as JSON holds it."""
    ids = [labels.ids[number] for number in found.labels.tolist()]
    agreement = found.agreement()
    return {
        "analysis": dict(facts),
        "labels": [{"id": label, "rows": int(count)} for label, count in zip(ids, found.counts, strict=True)],
        "order": [ids[place] for place in found.search.order.tolist()],
        "edges": [
            {"from": ids[one], "to": ids[other], "weight": float(found.weights[one, other])}
            for one, other in found.edges.tolist()
        ],
        "losses": list(found.search.losses),
        "finished": found.finished,
        "varsortability": found.sortable if np.isfinite(found.sortable) else None,
        "standardised": None if agreement is None else dict(zip(("edges", "same", "turned"), agreement, strict=True)),
    }


def html(name: str, status: str, found: Found, labels: LabelTable, facts: Mapping[str, Any]) -> str:
    """Return the page about the labels of `name`."""
    agreement, losses = found.agreement(), found.search.losses
    figures = [(f"{len(found.edges)}", "edges"), (f"{len(losses) - 1}", "rounds of swaps")]
    if np.isfinite(found.sortable):
        figures.append((f"{found.sortable:.2f}", "varsortability"))
    if agreement is not None:
        figures.append((f"{agreement[1]} of {agreement[0]}", "edges of standardised columns the same"))
    title = "Which labels depend on which"
    picture = drawn(title, found.weights, found.search.order, names(found, labels))
    note = (
        "An edge goes from a label to one that is regressed on it; dashed where the one makes the other rarer. The picture has "
        "the labels with an edge. " + caveat(found)
    )
    heads, rows = of_edges(found, labels, len(found.edges))
    chart = line_chart("Loss", "round of swaps", [Series("loss", _points(losses), marked=True)])
    versions = provenance.facts()
    about = {**facts, "commit": versions["commit"] or "none", **versions["versions"]}
    search: dict[str, Any] = {"loss at first": f"{losses[0]:.6g}", "loss at last": f"{losses[-1]:.6g}"}
    if agreement is not None:
        search |= dict(zip((f"standardised: {of}" for of in ("edges", "the same", "turned round")), agreement, strict=True))
    content: list[str | page.Group] = [
        page.Group("Graph", note, [page.section(title, picture or "<p>No edge.</p>", level=3)]),
        page.columns([page.section("Loss", chart), page.facts("Search", search)]),
        page.numbers("Edges", heads, rows),
        page.facts("Settings", about, folded=True),
    ]
    return page.document(f"Labels of {name}", status, figures, content)


def _points(losses: Sequence[float]) -> list[tuple[float, float]]:
    return [(float(number), value) for number, value in enumerate(losses)]
