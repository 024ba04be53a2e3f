"""Line charts as SVG text: no plotting library, colours and fonts from the page around them, so that dark mode follows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 380, 220  # of the drawing; it scales with the page, and 11 units of type are readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
POINTS = 160  # per line; more steps are averaged, their range drawn as a band behind
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line with its `name` and its points (x ascending, y finite); `marked` draws each point, with its value on hover.

    A `reference`, such as what would be best, is dashed and takes no colour; `filled` shades what is below a line. Without
    `joined` there is no line, only the points.
    """

    name: str
    points: Sequence[Point]
    marked: bool = False
    reference: bool = False
    filled: bool = False
    joined: bool = True


def line_chart(
    title: str,
    x_name: str,
    series: Sequence[Series],
    *,
    logarithmic: bool = False,
    logarithmic_x: bool = False,
    from_zero: bool = False,
    hold: Sequence[Point] = (),
) -> str:
    """Return an SVG of the series that have points, in the colours --line-1, --line-2, … of the page; "" where none has.

    The y axis is `logarithmic` where that is asked for and all y are positive, the x axis `logarithmic_x` likewise; y starts
    `from_zero` where that is asked for. The axes reach as far as the points `hold`, whatever is drawn.
    """
    drawn = [some for some in series if some.points]
    if not drawn:
        return ""
    xs = [x for points in (hold, *(some.points for some in drawn)) for x, _ in points]
    ys = [y for points in (hold, *(some.points for some in drawn)) for _, y in points]
    logarithmic = logarithmic and min(ys) > 0
    across = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, logarithmic=logarithmic_x and min(xs) > 0)
    up = _Axis(0.0 if from_zero else min(ys), max(ys), HEIGHT - BOTTOM, TOP, logarithmic=logarithmic)
    said = "; ".join(f"{some.name} from {some.points[0][1]:.4g} to {some.points[-1][1]:.4g}" for some in drawn)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {said}")}">']
    for value in up.ticks(5):
        y = up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{shown(value)}</text>')
    for value in across.ticks(5):
        parts.append(f'<text x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{shown(value)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>')
    names = _classes(drawn)
    for some, name in zip(drawn, names, strict=True):
        parts.extend(_drawn(some, name, across, up))
    return "".join([*parts, "</svg>", legend([some.name for some in drawn], names)])


def legend(series: Sequence[str], classes: Sequence[str] = ()) -> str:
    """Return the key of several series in the colours of their `classes`, line-1, line-2, … by default; "" of one."""
    if len(series) == 1:
        return ""
    classes = classes or [f"line-{number}" for number in range(1, len(series) + 1)]
    keys = (f'<span><i class="{of}"></i>{escape(name)}</span>' for name, of in zip(series, classes, strict=True))
    return f'<p class="legend">{"".join(keys)}</p>'


def shown(value: float) -> str:
    """Return a number as short as an axis wants it: 0.5, 1,200, 3e-4."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:,.10g}" if abs(value) < 1000 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


class _Axis:
    """Values to places: `low` … `high`, widened to round numbers if `ends` are vertical, onto `start` … `end`."""

    def __init__(self, low: float, high: float, start: float, end: float, *, logarithmic: bool = False) -> None:
        self.logarithmic = logarithmic
        if logarithmic:
            low, high = math.log10(low), math.log10(high)
        if high - low <= 1e-12 * max(abs(low), abs(high)):
            low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        """Return where a value lies."""
        if self.logarithmic:
            value = math.log10(value)
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        """Return round values inside, `about` so many."""
        if self.logarithmic and self.high - self.low >= 1:
            steps = (1, 2, 5) if self.high - self.low <= 2 else (1,)
            every = math.ceil((self.high - self.low) / about)
            powers = range(math.floor(self.low), math.ceil(self.high) + 1, every)
            return [step * 10.0**power for power in powers for step in steps if self._inside(math.log10(step * 10.0**power))]
        low, high = (10**self.low, 10**self.high) if self.logarithmic else (self.low, self.high)
        rough = (high - low) / about
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        first = math.ceil(low / step)
        values = [(first + number) * step for number in range(2 * about)]
        return [value for value in values if low - 1e-9 * step <= value <= high + 1e-9 * step]

    def _inside(self, value: float) -> bool:
        return self.low - 1e-9 <= value <= self.high + 1e-9


def _classes(drawn: Sequence[Series]) -> list[str]:
    """Return what each series is painted as: line-1, line-2, … and reference."""
    places = [sum(not some.reference for some in drawn[: number + 1]) for number in range(len(drawn))]
    return ["reference" if some.reference else f"line-{place}" for some, place in zip(drawn, places, strict=True)]


def _drawn(some: Series, name: str, across: _Axis, up: _Axis) -> list[str]:
    """Return the line, the range of what was averaged behind it, and its marks."""
    if not some.joined:
        return list(_marks(some, name, across, up))
    places = [[(across(x), up(y)) for x, y in group] for group in _grouped(some.points)]
    middle = [(_mean([x for x, _ in group]), _mean([y for _, y in group])) for group in places]
    parts = []
    if any(len(group) > 1 for group in places):
        edges = [[(x, pick(y for _, y in group)) for (x, _), group in zip(middle, places, strict=True)] for pick in (min, max)]
        parts.append(f'<polygon class="{name} band" points="{_listed([*edges[0], *reversed(edges[1])])}"/>')
    if some.filled:
        ground = [(middle[-1][0], up.start), (middle[0][0], up.start)]
        parts.append(f'<polygon class="{name} band" points="{_listed([*middle, *ground])}"/>')
    if len(middle) > 1:
        parts.append(f'<polyline class="{name}" points="{_listed(middle)}"/>')
    if some.marked or len(middle) == 1:
        parts.extend(_marks(some, name, across, up))
    return parts


def _marks(some: Series, name: str, across: _Axis, up: _Axis) -> Iterator[str]:
    for x, y in some.points:
        label = escape(f"{some.name}, {shown(x)}: {y:.4g}")
        yield f'<circle class="{name}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.6"><title>{label}</title></circle>'


def _grouped(points: Sequence[Point]) -> list[Sequence[Point]]:
    """Return at most POINTS groups of neighbouring points."""
    groups = min(POINTS, len(points))
    edges = [len(points) * number // groups for number in range(groups + 1)]
    return [points[start:end] for start, end in pairwise(edges)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _listed(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
