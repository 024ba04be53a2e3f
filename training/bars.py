"""Bar charts as SVG text, in the manner of `training.chart`, and what makes a chart a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from training.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, shown

_COLOURS = ("#4338ca", "#c2410c", "#0f766e", "#a21caf", "#0369a1", "#78758a")  # those of page.html
_DARK = ("#a5b4fc", "#fdba74", "#2dd4bf", "#f0abfc", "#7dd3fc", "#a09db2")


def bar_chart(
    title: str,
    x_name: str,
    names: Sequence[str],
    series: Sequence[tuple[str, Sequence[float]]],
    painted: Sequence[str] = (),
) -> str:
    """Return an SVG of a group of bars for each of `names`: one of each series, whose values are 0 or more, one a name.

    `painted` are the series' classes, line-1, line-2, … by default.
    """
    painted = painted or [f"line-{number}" for number in range(1, len(series) + 1)]
    most = max((value for _, values in series for value in values), default=0.0) or 1.0
    step = next(power * one for power in (10.0**n for n in range(-6, 18)) for one in (1, 2, 5) if power * one * 5 >= most)
    top = step * -(-most // step)
    room = (WIDTH - LEFT - RIGHT) / max(len(names), 1)
    wide = 0.8 * room / max(len(series), 1)
    said = "; ".join(f"{name} {', '.join(f'{value:.4g}' for value in values)}" for name, values in series)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {said}")}">']
    for tick in range(round(top / step) + 1):
        y = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * tick * step / top
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{shown(tick * step)}</text>')
    for place, name in enumerate(names):
        middle = LEFT + room * (place + 0.5)
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{escape(name)}</text>')
        for number, (of, values) in enumerate(series):
            high = (HEIGHT - BOTTOM - TOP) * values[place] / top
            x = middle + wide * (number - len(series) / 2)
            label = escape(f"{of}, {name}: {values[place]:.4g}")
            box = f'x="{x:.1f}" y="{HEIGHT - BOTTOM - high:.1f}" width="{wide * 0.92:.1f}" height="{high:.1f}"'
            parts.append(f'<rect class="{painted[number]}" {box}><title>{label}</title></rect>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>')
    return "".join([*parts, "</svg>"])


def standalone(svg: str, title: str, series: Sequence[str], painted: Sequence[str] = ()) -> str:
    """Return a chart as a file of its own: with its title, a key of its series, and colours for light and dark."""
    painted = painted or [f"line-{number}" for number in range(1, len(series) + 1)]
    body = svg[svg.index(">") + 1 : svg.index("</svg>")]
    attributes = svg[len("<svg viewBox=") : svg.index(">")].split('"', 2)[2]
    key = "".join(
        f'<rect class="{of}" x="{LEFT + 90 * (number - 1)}" y="{-8}" width="8" height="8"/>'
        f'<text x="{LEFT + 90 * (number - 1) + 12}" y="0">{escape(name)}</text>'
        for number, (name, of) in enumerate(zip(series, painted, strict=True), 1)
        if len(series) > 1
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -30 {WIDTH} {HEIGHT + 30}"{attributes}><style>{_style()}</style>'
        f'<rect class="paper" y="-30" width="{WIDTH}" height="{HEIGHT + 30}"/>'
        f'<text class="title" x="{LEFT}" y="-16">{escape(title)}</text>{key}{body}</svg>\n'
    )


def _style() -> str:
    def rules(colours: Sequence[str], paper: str, ink: str, rule: str) -> str:
        lines = "".join(
            f"rect.line-{n},circle.line-{n},.band.line-{n}{{fill:{c}}}polyline.line-{n}{{stroke:{c}}}"
            for n, c in enumerate(colours, 1)
        )
        return f"text{{fill:{ink}}}.paper{{fill:{paper}}}.grid{{stroke:{rule}}}{lines}"

    shape = "text{font:11px system-ui,sans-serif}.title{font-weight:600}polyline{fill:none;stroke-width:2}.band{opacity:.25}"
    dark = rules(_DARK, "#121217", "#b6b3c2", "#2d2c37")
    return f"{shape}{rules(_COLOURS, '#fff', '#55535f', '#e4e1d9')}@media (prefers-color-scheme: dark){{{dark}}}"
