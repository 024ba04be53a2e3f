"""Two ways of answering the same queries: how far apart they are, and whether that could be luck.

Queries are drawn anew, the same ones for both sides (a paired bootstrap); where a side has several seeds, its seeds are drawn
anew as well, each draw averaging as many. N queries, M figures, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dexml import metrics
from dexml.types import Int64Array

CUTOFFS = (1, 3, 5, 10, 100)
DRAWS = 2000
BLOCK = 4096  # rows at a time
LEVEL = 0.95
SHOWN = ("P@1", "P@3", "P@5", "nDCG@5", "R@10", "R@100", "MRR@10", "MAP@10", "PSP@1", "PSP@5", "coverage@5", "macroF1@5")


@dataclass(frozen=True, eq=False)
class Side:
    """What the seeds of one side earn: `gained` (S, M, N) and `possible` (M, N) as in `metrics.Rows`, and their tallies."""

    names: tuple[str, ...]
    gained: metrics.Float64Array
    possible: metrics.Float64Array
    tallies: tuple[metrics.Tally, ...]

    @staticmethod
    def of(answers: Sequence[Int64Array], truth: Any, weights: metrics.Float64Array | None) -> Side:
        """Return what each seed's `answers` (N, K) earn."""
        gained, tallies = [], []
        for ranked in answers:
            parts = []
            for start in range(0, len(truth), BLOCK):
                rows = np.arange(start, min(start + BLOCK, len(truth)))
                parts.append(metrics.of_rows(ranked[rows], truth.take(rows), weights, CUTOFFS))
            gained.append(np.concatenate([part.gained for part in parts], axis=1))
            tallies.append(metrics.measure(ranked, truth, weights, CUTOFFS))
        possible = np.concatenate([part.possible for part in parts], axis=1)
        return Side(parts[0].names, np.stack(gained), possible, tuple(tallies))

    def figures(self) -> list[dict[str, float]]:
        """Return the figures of each seed, in percent."""
        return [tally.figures() for tally in self.tallies]


@dataclass(frozen=True)
class Difference:
    """A figure of both sides in percent, mean and standard deviation over seeds (None of one), and how far B is above A.

    `low` … `high` is an interval that holds the true difference 95 times in 100; `p` says how likely one as far from 0 is by
    luck. All three are None for figures that are no means over queries.
    """

    name: str
    a: float
    b: float
    a_deviation: float | None
    b_deviation: float | None
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the difference as a document."""
        return asdict(self)


def compare(a: Side, b: Side, draws: int = DRAWS, seed: int = 0) -> list[Difference]:
    """Return every figure's difference; the same `seed` gives the same intervals."""
    of_a, of_b = a.figures(), b.figures()
    drawn = _differences(a, b, draws, seed)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    # One more than was counted, since what was seen is a draw as well; the smaller tail twice, ties on both sides.
    tails = np.minimum((drawn <= 0).sum(axis=0), (drawn >= 0).sum(axis=0))
    p = np.minimum(1, 2 * (1 + tails) / (1 + draws))
    place = {name: number for number, name in enumerate(a.names)}
    found = []
    for name in of_a[0]:
        ours, theirs = [figures[name] for figures in of_a], [figures[name] for figures in of_b]
        first, second = float(np.mean(ours)), float(np.mean(theirs))
        bounds: tuple[float | None, float | None, float | None] = (None, None, None)
        if name in place:
            at = place[name]
            bounds = (float(low[at]), float(high[at]), float(p[at]))
        found.append(Difference(name, first, second, _deviation(ours), _deviation(theirs), second - first, *bounds))
    return found


def rows(found: Sequence[Difference]) -> list[tuple[str, ...]]:
    """Return name, A, B, difference, interval and p of the figures that are SHOWN, as one reads them."""
    shown: list[tuple[str, ...]] = []
    for one in found:
        if one.name not in SHOWN:
            continue
        of_a, of_b = (
            f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"
            for mean, deviation in ((one.a, one.a_deviation), (one.b, one.b_deviation))
        )
        interval, p = "–", "–"
        if one.low is not None and one.high is not None and one.p is not None:
            interval, p = f"{one.low:+.2f} to {one.high:+.2f}", f"{one.p:.3f}"
        shown.append((one.name, of_a, of_b, f"{one.difference:+.2f}", interval, p))
    return shown


def per_query(a: Side, b: Side, name: str) -> metrics.Float64Array:
    """Return how much more B earns than A for each query (N), both averaged over seeds."""
    at = a.names.index(name)
    return np.asarray(b.gained[:, at].mean(axis=0) - a.gained[:, at].mean(axis=0))


def won(a: Side, b: Side, name: str) -> dict[str, int]:
    """Return for how many queries each side earns more, and for how many both earn as much."""
    apart = per_query(a, b, name)
    return {"a": int((apart < 0).sum()), "equal": int((apart == 0).sum()), "b": int((apart > 0).sum())}


def _differences(a: Side, b: Side, draws: int, seed: int) -> metrics.Float64Array:
    """Return the difference of every figure in each draw, in percent (draws, M)."""
    random = np.random.default_rng(seed)
    queries = a.possible.shape[1]
    some = max(1, min(draws, (1 << 24) // queries))  # draws at a time: 128 MiB of counts
    drawn = np.empty((draws, len(a.names)))
    for start in range(0, draws, some):
        count = min(some, draws - start)
        times = np.empty((count, queries))
        for one in range(count):
            times[one] = np.bincount(random.integers(0, queries, queries), minlength=queries)
        possible = times @ a.possible.T
        ratio = 100 / np.where(possible > 0, possible, 1)
        drawn[start : start + count] = (_averaged(b, times, random) - _averaged(a, times, random)) * ratio
    return drawn


def _averaged(side: Side, times: metrics.Float64Array, random: np.random.Generator) -> metrics.Float64Array:
    """Return what a side earns in each draw (draws, M), averaged over seeds drawn anew."""
    seeds = len(side.gained)
    sums = np.stack([times @ gained.T for gained in side.gained])
    if seeds == 1:
        return np.asarray(sums[0])
    shares = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(times)) / seeds
    return np.asarray(np.einsum("ds,sdm->dm", shares, sums))


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
