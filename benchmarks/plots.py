"""Pictures of measured ratios, for the README: light, as wide as its text, in colours told apart without colour vision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# Okabe and Ito's palette, in an order in which neighbours also differ in lightness.
COLOURS = ("#0072b2", "#e69f00", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#999999")
INK, FAINT = "#1f2328", "#d1d9e0"


def ratio_bars(path: Path, title: str, groups: Mapping[str, Mapping[str, float]], baseline: str, note: str = "") -> Path:
    """Draw `groups` of bars, {group: {way: ratio}}, from the left to a PNG and return its path; longer is faster.

    A line at 1 stands for the `baseline`, to which all are compared. Every way keeps its colour in all groups; `note` is set
    small below.
    """
    ways = list(dict.fromkeys(way for group in groups.values() for way in group))
    colours = {way: COLOURS[number % len(COLOURS)] for number, way in enumerate(ways)}
    places, labels, place = [], [], 0.0
    bars: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for name, group in groups.items():
        start = place
        for way, ratio in group.items():
            bars[way].append((place, ratio))
            place += 1
        places.append((start + place - 1) / 2)
        labels.append(name)
        place += 0.7
    figure = Figure(figsize=(8.3, 1.3 + 0.27 * place + (0.25 if note else 0)), dpi=160, facecolor="white", layout="constrained")
    axes = figure.add_subplot(facecolor="white")
    longest = max(ratio for group in groups.values() for ratio in group.values())
    for way, found in bars.items():
        heights = [place for place, _ in found]
        axes.barh(heights, [ratio for _, ratio in found], height=0.86, color=colours[way], label=way)
        for height, ratio in found:
            axes.text(ratio + 0.008 * longest, height, f"{ratio:.2f}×", va="center", fontsize=9, color=INK)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xlim(0, 1.1 * longest)
    axes.set_yticks(places, labels, fontsize=10, color=INK)
    axes.invert_yaxis()
    axes.tick_params(axis="both", length=0, labelcolor=INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
    axes.set_xlabel(
        f"speed relative to {baseline} (1×); longer is faster" + (f"\n{note}" if note else ""), fontsize=9, color=INK
    )
    figure.legend(loc="outside lower center", ncols=min(4, len(ways)), fontsize=9, frameon=False, labelcolor=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
