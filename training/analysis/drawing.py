"""A directed acyclic graph as SVG: in columns by the longest path to a node, so that every edge goes to the right."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from dexml.analysis.dags import Float64Array, levels
from dexml.types import Int64Array

WIDE, HIGH = 210, 26  # of a column and of a row, in units of the drawing
ROOM = 130  # of a name
LETTERS = 22  # of a name shown
HALO = "paint-order:stroke;stroke:var(--card);stroke-width:3px"  # lines pass behind names
SWEEPS = 8  # over the columns, so that lines cross less


def drawn(title: str, weights: Float64Array, order: Int64Array, names: Sequence[str]) -> str:
    """Return a box that scrolls with the SVG of all nodes that have an edge; "" without an edge.

    Edges are thicker where |W| is larger, and dashed where W is below 0. `order` has every node behind its parents; `names`
    (d) are shown short, and whole on hover.
    """
    joined = np.flatnonzero((weights != 0).any(axis=0) | (weights != 0).any(axis=1))
    if len(joined) == 0:
        return ""
    columns = _columns(weights, levels(weights, order), joined)
    places = {node: (column, row) for column, nodes in enumerate(columns) for row, node in enumerate(nodes)}
    tall = max(len(nodes) for nodes in columns)
    offsets = [(tall - len(nodes)) / 2 for nodes in columns]

    def at(node: int) -> tuple[float, float]:
        column, row = places[node]
        return 8 + column * WIDE, HIGH * (offsets[column] + row + 0.5)

    largest = float(np.abs(weights).max())
    edges = np.argwhere(weights != 0).tolist()
    across = len(columns) * WIDE - WIDE + ROOM + 16
    size = f'viewBox="0 0 {across} {tall * HIGH:.0f}" style="min-width:{across}px"'
    said = f"{title}: {len(joined)} labels, {len(edges)} edges"
    parts = [f'<svg {size} role="img" aria-label="{escape(said)}">']
    for one, other in edges:
        (x, y), (to_x, to_y) = at(one), at(other)
        x, to_x = x + ROOM, to_x - 5
        bend = (to_x - x) / 2
        weight = weights[one, other]
        dash = ' stroke-dasharray="4 3"' if weight < 0 else ""
        path = f"M{x:.1f} {y:.1f}C{x + bend:.1f} {y:.1f} {to_x - bend:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"
        wide = 0.6 + 2 * abs(weight) / largest
        told = escape(f"{names[one]} → {names[other]}: {weight:.2f}")
        line = f'fill="none" stroke="var(--line-1)" stroke-opacity=".55" stroke-width="{wide:.1f}"{dash}'
        parts.append(f'<path d="{path}" {line}><title>{told}</title></path>')
        head = f"{to_x:.1f},{to_y:.1f} {to_x - 5:.1f},{to_y - 3:.1f} {to_x - 5:.1f},{to_y + 3:.1f}"
        parts.append(f'<polygon points="{head}" fill="var(--line-1)"/>')
    for node in places:
        x, y = at(node)
        text = " ".join(names[node].split())
        short = text if len(text) <= LETTERS else f"{text[: LETTERS - 1].rstrip()}…"
        parts.append(f'<text x="{x:.1f}" y="{y + 3.5:.1f}" style="{HALO}">{escape(short)}<title>{escape(text)}</title></text>')
    return f'<div class="wide" role="region" aria-label="{escape(title)}" tabindex="0">{"".join(parts)}</svg></div>'


def _columns(weights: Float64Array, levels: Int64Array, joined: Int64Array) -> list[list[int]]:
    """Return the nodes of each column from top to bottom: each near the middle of those it is joined to (Sugiyama)."""
    columns = [[int(node) for node in joined if levels[node] == level] for level in range(int(levels[joined].max()) + 1)]
    ties = (weights != 0) | (weights.T != 0)
    places = np.zeros(len(weights))
    for nodes in columns:
        places[nodes] = np.linspace(0, 1, len(nodes) + 2)[1:-1]
    for sweep in range(SWEEPS):
        for nodes in columns if sweep % 2 == 0 else reversed(columns):
            middle = {node: float(places[ties[node]].mean()) for node in nodes}
            nodes.sort(key=lambda node: middle[node])
            places[nodes] = np.linspace(0, 1, len(nodes) + 2)[1:-1]
    return columns
