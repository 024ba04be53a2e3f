"""`dexml analyze ntk`: what was found as tables, as a document, and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dexml.analysis.dags import Float64Array
from dexml.types import LabelTable
from training import page, provenance
from training.analysis.ntk import CUTOFFS, START, TIMES, TRAINED, Found, Learning
from training.chart import Series, line_chart

SHOWN = 12  # labels of a table
LAZY = 0.1  # turn of a kernel: below, it is taken for constant
DRAWN = 120  # points of a curve
SHARE = 0.9  # of the labels' squares
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def of_kernels(found: Found) -> Table:
    """Return a row a kernel: its effective rank, participation, alignment, and where the labels lie."""
    heads = ("kernel", "λ₁, share", "effective rank", "(Σλ)²/Σλ²", "alignment", f"{SHARE:.0%} of labels in")
    rows: list[tuple[str, ...]] = []
    for name, kernel in found.kernels.items():
        spectrum = kernel.spectrum
        rows.append(
            (
                name,
                f"{spectrum.values[0] / spectrum.values.sum():.3f}",
                f"{spectrum.effective_rank:.1f}",
                f"{spectrum.participation:.1f}",
                f"{kernel.alignment:.3f}",
                f"first {kernel.reach(SHARE)} of {len(spectrum.values)}",
            )
        )
    return heads, rows


def of_ridges(found: Found, run: Sequence[float], run_rows: int) -> Table:
    """Return P@k of kernel ridge regressions, and of the run."""
    ks = [f"P@{k}" for k in CUTOFFS]
    rows = [
        (name, f"{found.ridge_rows:,}", f"{of.ridge:g}", *(f"{value:.2f}" for value in (*of.precision, *of.held_out)))
        for name, of in found.ridges.items()
    ]
    rows.append(("the run", f"{run_rows:,}", "–", *(f"{value:.2f}" for value in run), *("–" for _ in ks)))
    return ("model", "rows", "ridge/λ̄", *ks, *(f"{k} held out" for k in ks)), rows


def of_labels(learning: Learning, labels: LabelTable, *, last: bool) -> Table:
    """Return the labels that are learned first, or `last`."""
    order = np.argsort(-learning.half_lives if last else learning.half_lives, kind="stable")[:SHOWN]
    rows: list[tuple[str, ...]] = []
    for place in order.tolist():
        number = int(learning.labels[place])
        text = " ".join((labels.texts[number] or labels.ids[number]).split())
        rows.append((text[:80], f"{learning.counts[place]}", f"{learning.half_lives[place]:.3g}"))
    return ("label", "rows", "half-life, 1/(ηλ₁)"), rows


def moved(found: Found) -> str:
    """Return in words how far the kernel moved in training; the note where there is none."""
    if found.note:
        return f"{found.note[0].upper()}{found.note[1:]}."
    lazy = "the linear model of its start says much of it" if found.turn < LAZY else "it is no linear model of its start"
    return (
        f"In training the kernel moved by {100 * found.drift:.0f}% of its length; of the two at length 1, the difference is "
        f"{found.turn:.2f}: {lazy}."
    )


def document(found: Found, labels: LabelTable, run: Sequence[float], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of it as JSON holds it."""
    learned = found.learning
    return {
        "analysis": dict(facts),
        "kernels": {
            name: {
                "eigenvalues": kernel.spectrum.values.tolist(),
                "effective_rank": kernel.spectrum.effective_rank,
                "participation": kernel.spectrum.participation,
                "alignment": kernel.alignment,
                "label_energy": kernel.energy.tolist(),
            }
            for name, kernel in found.kernels.items()
        },
        "drift": None if found.note else found.drift,
        "turn": None if found.note else found.turn,
        "note": found.note or None,
        "labels": []
        if learned is None
        else [
            {"id": labels.ids[number], "rows": int(count), "half_life": float(half) if np.isfinite(half) else None}
            for number, count, half in zip(learned.labels.tolist(), learned.counts, learned.half_lives, strict=True)
        ],
        "residuals": {}
        if learned is None
        else {"times": TIMES.tolist(), **{name: of.tolist() for name, of in learned.residuals.items()}},
        "ridge": {
            name: {"ridge": of.ridge, "held_out": list(of.held_out), "test": list(of.precision)}
            for name, of in found.ridges.items()
        },
        "run": list(run),
    }


def html(
    name: str, status: str, found: Found, labels: LabelTable, run: Sequence[float], run_rows: int, facts: Mapping[str, Any]
) -> str:
    """Return the page about the run `name`, with its P@k on the rows that the regressions were tested on."""
    best = max(found.ridges.values(), key=lambda of: sum(of.held_out))
    first = START if START in found.kernels else next(iter(found.kernels))
    figures = [
        (f"{found.kernels[first].spectrum.effective_rank:.0f}", f"effective rank, {first}"),
        (f"{run[0]:.1f}", "P@1 of the run"),
        (f"{best.precision[0]:.1f}", "P@1 of kernel ridge"),
    ]
    if not found.note:
        figures.insert(1, (f"{found.kernels[TRAINED].spectrum.effective_rank:.0f}", f"effective rank, {TRAINED}"))
        figures.insert(2, (f"{found.turn:.2f}", "turn of the kernel"))
    versions = provenance.facts()
    about = {**facts, "commit": versions["commit"] or "none", **versions["versions"]}
    content = [*_kernels(found), *_learning(found, labels, first), _ridges(found, run, run_rows)]
    return page.document(f"Tangent kernel of {name}", status, figures, [*content, page.facts("Settings", about, folded=True)])


def _kernels(found: Found) -> list[page.Group]:
    spectra = [
        Series(name, _points(kernel.spectrum.values / kernel.spectrum.values[0])) for name, kernel in found.kernels.items()
    ]
    energies = [Series(name, _points(100 * np.cumsum(kernel.energy))) for name, kernel in found.kernels.items()]
    titles = ("Eigenvalues over the largest", "Labels' squares along the first eigenvectors, percent")
    drawn = (
        line_chart(titles[0], "number", spectra, logarithmic=True, logarithmic_x=True),
        line_chart(titles[1], "eigenvectors", energies, logarithmic_x=True, from_zero=True),
    )
    heads, rows = of_kernels(found)
    note = (
        "Residuals along an eigenvector fall at a rate of ηλ: few large eigenvalues mean that few directions are learned soon. "
        "The more of the labels lies along the first, and the closer the alignment is to 1, the better the kernel suits them. "
        + moved(found)
    )
    cards = [page.card(title, chart, level=3) for title, chart in zip(titles, drawn, strict=True)]
    return [page.Group("Spectra", note, [page.charts(cards), page.numbers("Kernels", heads, rows, level=3)])]


def _learning(found: Found, labels: LabelTable, first: str) -> list[page.Group]:
    learned = found.learning
    if learned is None:
        return []
    title = "Residual left of a label, percent, mean"
    series = [
        Series(name, list(zip(TIMES.tolist(), (100 * of).tolist(), strict=True))) for name, of in learned.residuals.items()
    ]
    drawn = line_chart(title, "time, 1/(ηλ₁)", series, logarithmic_x=True, from_zero=True)
    tables = [page.section(title, drawn, level=3)]
    for last, heading in ((False, "Learned first"), (True, "Learned last")):
        heads, rows = of_labels(learned, labels, last=last)
        tables.append(page.numbers(heading, heads, rows, level=3))
    note = (
        f"How the residual of each label would fall by gradient flow on squares with the kernel {first}: frequent labels that "
        "many like queries share come first. Where the curves of rare labels are still high while frequent ones are done, "
        "stopping early leaves out the rare ones."
    )
    return [page.Group("What is learned first", note, [page.columns(tables)])]


def _ridges(found: Found, run: Sequence[float], run_rows: int) -> page.Group:
    heads, rows = of_ridges(found, run, run_rows)
    note = (
        f"Kernel ridge regression of the labels on frozen features, the ridge chosen on rows held out, and the run through the "
        f"path that serves, all on the same {found.tested:,} test rows. The run may have had more training rows; a regression "
        "reads no label texts, and gives a label without training rows nothing."
    )
    return page.Group("Kernel ridge beside the run", note, [page.numbers("P@k, percent", heads, rows, level=3)])


def _points(values: Float64Array) -> list[tuple[float, float]]:
    """Return the points of a curve over numbers from 1 on, as close as a logarithmic axis shows them."""
    places = np.unique(np.geomspace(1, len(values), DRAWN).astype(np.int64))
    return [(float(number), float(values[number - 1])) for number in places if values[number - 1] > 1e-12]
