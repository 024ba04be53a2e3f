"""Pictures of a service under load: throughput by clients; latency by load, shaded where some requests are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plots import COLOURS, FAINT, INK


def throughput(path: Path, title: str, points: Sequence[tuple[int, float]], note: str) -> Path:
    """Draw requests a second over the number of closed-loop clients to a PNG and return its path."""
    figure, axes = _new(title, "clients, each waiting for its answer before it asks again", "answers a second", note)
    axes.plot([clients for clients, _ in points], [rate for _, rate in points], color=COLOURS[0], marker="o", linewidth=2)
    for clients, rate in points:
        axes.annotate(f"{rate:,.0f}", (clients, rate), (0, 8), textcoords="offset points", ha="center", fontsize=9, color=INK)
    axes.set_xscale("log", base=2)
    axes.set_xticks([clients for clients, _ in points], [str(clients) for clients, _ in points])
    axes.set_ylim(0, 1.15 * max(rate for _, rate in points))
    return _save(figure, path)


def latency(path: Path, title: str, points: Sequence[tuple[float, float, float, float]], note: str) -> Path:
    """Draw `points` (requests a second, p50 ms, p99 ms, share refused) to a PNG and return its path."""
    figure, axes = _new(title, "requests a second, due at even intervals whatever becomes of them", "ms until the answer", note)
    rates = [rate for rate, *_ in points]
    for name, place, colour in (("p50", 1, COLOURS[2]), ("p99", 2, COLOURS[0])):
        axes.plot(rates, [point[place] for point in points], color=colour, marker="o", linewidth=2, label=name)
    refused = [rate for rate, _, _, share in points if share > 0]
    if refused:
        before = [rate for rate in rates if rate < min(refused)]
        start = (max(before) + min(refused)) / 2 if before else min(refused)
        axes.axvspan(start, 1.03 * max(rates), color=COLOURS[1], alpha=0.18, linewidth=0, label="some get 429")
        for rate, _, high, share in points:
            if share > 0:
                words = f"{share:.0%} refused"
                axes.annotate(words, (rate, high), (0, 8), textcoords="offset points", ha="center", fontsize=8, color=INK)
    axes.set_yscale("log")
    axes.set_xlim(0, 1.03 * max(rates))
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
    return _save(figure, path)


def _new(title: str, across: str, up: str, note: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.3, 3.6), dpi=160, facecolor="white", layout="constrained")
    axes = figure.add_subplot(facecolor="white")
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
    axes.set_xlabel(f"{across}\n{note}", fontsize=9, color=INK)
    axes.set_ylabel(up, fontsize=9, color=INK)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", which="both", length=0, labelcolor=INK)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
