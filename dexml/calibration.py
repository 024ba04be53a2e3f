"""Scores -> probabilities that mean what they say: the probability that a label is right, given its score.

A dual encoder's softmax over all labels is another thing. It sums to one over the labels, so of a query with twenty right ones
it can give none more than its share: it is the probability that a right label drawn at random is this one, and the temperature
that makes it the most likely, by the mean −log softmax of the positives, does not change what it means. Here every label is
asked about for itself, as precision is: of the answers given with probability p, the share p is right.

    g = s/T − c·log Σ_j e^{s_j/T}     s the score that the path returns, T the fitted temperature, c between 0 and 1
    p = isotonic(g)

c = 0 is the cosine, c = 1 the log-softmax; between them, the sum over all labels tells in part how many others are as near. Of
one query g rises with s and p never falls, so that no answer changes its place (isotonic regression: Zadrozny and Elkan,
Transforming Classifier Scores into Accurate Multiclass Probability Estimates, KDD 2002; temperature: Guo et al., On Calibration
of Modern Neural Networks, ICML 2017).

VERSION/calibration.json     the fit, where a version has one
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt, Le, Len
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from scipy.optimize import isotonic_regression, minimize_scalar

from dexml.errors import InputError
from dexml.metrics.calibration import FLOOR, BoolArray, Float64Array, ece_at
from dexml.positives import Int64Array

FILE = "calibration.json"
LEAST_ROWS = 50  # validation rows; fewer say nothing
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # c
FOLDS = 5
POINTS = 100  # through which the curve goes, at most,
LEAST_ANSWERS = 50  # of so many answers each, at least
TEMPERATURES = (0.005, 1.0)  # between which T is looked for: cosines lie in [−1, 1]
BAGS = 50  # resamples of the rows that the curve is the mean over
GRID = 100  # thresholds are kept for every hundredth of precision
SURE = 1.6448536269514722  # the 95 % point of the normal distribution, one-sided

Probability = Annotated[float, Ge(0), Le(1)]


class Calibration(BaseModel):
    """The curve through `knots` (g, ascending) and `probabilities` (never falling), flat beyond its ends.

    `temperature` is T, `share` c. `thresholds[i]` is the least probability whose answers are surely right as often as
    (i + 1)/100 (`thresholds_of`). It was fitted on the first `depth` answers of `rows` validation rows; `ece` is ECE@5 there:
    of the softmax over all labels as trained, and of this, each row by a curve fitted on others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: Annotated[float, Gt(0)]
    share: Annotated[float, Ge(0), Le(1)]
    knots: Annotated[tuple[float, ...], Len(2)]
    probabilities: tuple[Probability, ...]
    thresholds: tuple[Probability, ...] = ()
    rows: Annotated[int, Ge(1)]
    depth: Annotated[int, Ge(1)]
    ece: tuple[Probability, Probability]

    @model_validator(mode="after")
    def _is_a_curve(self) -> Calibration:
        knots, values = np.array(self.knots), np.array(self.probabilities)
        if len(knots) != len(values) or not (np.diff(knots) > 0).all() or not (np.diff(values) >= 0).all():
            raise ValueError("knots must ascend, probabilities must not fall, and there must be as many of both")
        return self

    @property
    def needs_log_z(self) -> bool:
        """Whether the sum over all labels has a say."""
        return self.share > 0

    def of(self, scores: npt.ArrayLike, log_z: npt.ArrayLike | None) -> Float64Array:
        """Return the probability of each of `scores` (B, K), float64; 0 where an answer is missing (−inf).

        `log_z` (B) is log Σ e^{s/T} over all labels at this temperature; it may be None where `needs_log_z` is False. In a row
        a higher score never has a lower probability, and equal scores have the same, to the last bit.
        """
        given = np.asarray(scores, dtype=np.float64)
        there = given > -np.inf
        curved = self._curve(feature(np.where(there, given, 0.0), log_z, self.temperature, self.share))
        probabilities: Float64Array = np.where(there, curved, 0.0)
        return probabilities

    def _curve(self, values: Float64Array) -> Float64Array:
        knots, heights = np.array(self.knots), np.array(self.probabilities)
        right = np.minimum(np.searchsorted(knots, values, side="right"), len(knots) - 1)
        # Rounding may lift a point above the knot to its right by the last bit.
        curved: Float64Array = np.minimum(np.interp(values, knots, heights), heights[right])
        return curved

    def threshold(self, precision: float) -> float | None:
        """Return the least probability whose answers are right as often as `precision` (0..1); None where none surely are."""
        if precision <= 0:
            return 0.0
        place = math.ceil(round(precision * GRID, 9)) - 1
        return self.thresholds[place] if place < len(self.thresholds) else None

    @property
    def highest(self) -> float:
        """The highest precision that has a threshold."""
        return len(self.thresholds) / GRID

    def about(self) -> dict[str, object]:
        """Return what a service says of it, in JSON's terms."""
        return {"rows": self.rows, "depth": self.depth, "ece@5": list(self.ece), "highest_precision": self.highest}

    def write(self, folder: Path) -> None:
        """Write the file into a version's folder, in place of one that is there."""
        forget(folder)
        (folder / FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> Calibration | None:
        """Return the calibration of the version in `folder`; None where it has none. Raises InputError that names the file."""
        file = folder / FILE
        if not file.exists():
            return None
        try:
            return Calibration.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise InputError(f"bundle: {file}: {error.errors(include_url=False)[0]['msg']}") from None


@dataclass(frozen=True, eq=False)
class Watched:
    """Answers of N validation rows: `scores` float64 (N, K) descending, −inf where there is none, and `hits` bool (N, K).

    `log_z` float64 (N) is over all labels, at the fitted `temperature`; `softmax` float64 (N, K) the probabilities as trained.
    Rows with the same number in `folds` (N) are left out together, when what was fitted on the others is judged.
    """

    scores: Float64Array
    hits: BoolArray
    log_z: Float64Array
    temperature: float
    softmax: Float64Array
    folds: Int64Array

    @property
    def there(self) -> BoolArray:
        """Which answers there are, bool (N, K)."""
        return self.scores > -np.inf

    def crossed(self, share: float) -> Float64Array:
        """Return the probabilities (N, K) that curves fitted on the other folds give, NaN where there is no answer."""
        values = feature(np.where(self.there, self.scores, 0.0), self.log_z, self.temperature, share)
        crossed = np.full(self.scores.shape, np.nan)
        for fold in np.unique(self.folds):
            out = self.folds == fold
            knots, heights = curve(values[~out], self.hits[~out], self.there[~out])
            crossed[out] = np.interp(values[out], knots, heights)
        return np.where(self.there, crossed, np.nan)

    def loss(self, probabilities: Float64Array) -> float:
        """Return the log loss of the answers, of which the later count less (`discounts`)."""
        p = np.clip(probabilities[self.there], FLOOR, 1 - FLOOR)
        weights = np.broadcast_to(discounts(self.scores.shape[1]), self.scores.shape)[self.there]
        return float(-np.average(np.where(self.hits[self.there], np.log(p), np.log1p(-p)), weights=weights))


def fit(watched: Watched) -> Calibration:
    """Return the calibration whose share c gives other rows than it was fitted on the least log loss; of equals, the least c.

    Raises InputError for fewer than LEAST_ROWS rows, for answers that are all right or all wrong, and for equal scores alone.
    """
    rows, depth = watched.scores.shape
    right, answers = int(watched.hits[watched.there].sum()), int(watched.there.sum())
    if rows < LEAST_ROWS or answers < 2 * LEAST_ANSWERS:
        raise InputError(f"calibration: {rows} validation rows with {answers} answers are too few; at least {LEAST_ROWS} rows")
    if right in (0, answers):
        raise InputError(f"calibration: of {answers} answers {right} are right: nothing tells right from wrong")
    if np.ptp(watched.scores[watched.there]) == 0:
        raise InputError("calibration: all answers have the same score")
    crossed = {share: watched.crossed(share) for share in SHARES}
    share = min(SHARES, key=lambda share: watched.loss(crossed[share]))
    values = feature(np.where(watched.there, watched.scores, 0.0), watched.log_z, watched.temperature, share)
    knots, heights = curve(values, watched.hits, watched.there)
    return Calibration(
        temperature=watched.temperature,
        share=share,
        knots=tuple(knots.tolist()),
        probabilities=tuple(heights.tolist()),
        thresholds=thresholds_of(crossed[share], watched.hits),
        rows=rows,
        depth=depth,
        ece=(ece_at(5, watched.softmax, watched.hits), ece_at(5, crossed[share], watched.hits)),
    )


def temperature_of(log_z: Callable[[float], Float64Array], positives: Float64Array) -> float:
    """Return the temperature at which the softmax over all labels explains the positives best.

    The least mean over rows of log Z(T) − s̄/T, the cross-entropy of the softmax with the even distribution over a row's
    positives; `positives` (N) are their mean scores s̄, and `log_z` gives log Z (N) at a temperature.
    """

    def surprise(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        return float(np.mean(log_z(temperature) - positives / temperature))

    low, high = map(math.log, TEMPERATURES)
    return math.exp(minimize_scalar(surprise, bounds=(low, high), method="bounded", options={"xatol": 0.01}).x)


def feature(scores: Float64Array, log_z: npt.ArrayLike | None, temperature: float, share: float) -> Float64Array:
    """Return g = s/T − c·log Z (B, K): in a row never lower where a score is higher, not even by rounding."""
    if share == 0:
        return scores / temperature
    if log_z is None:
        raise ValueError("calibration: log Z over all labels is needed")
    return scores / temperature - share * np.asarray(log_z, dtype=np.float64)[:, None]


def curve(values: Float64Array, hits: BoolArray, there: BoolArray) -> tuple[Float64Array, Float64Array]:
    """Return knots and heights of the isotonic regression of `hits` on `values`, each (N, K), where answers are `there`.

    It goes through at most POINTS points of equal weight, each the mean of LEAST_ANSWERS answers or more, with one hit and one
    miss more, half of each: a curve through single answers would promise 0 and 1 at its ends. The heights are the mean over
    BAGS resamples of the rows, each made isotonic (bagging: Breiman, 1996): of a few hundred rows the steps of one fit are
    luck. Answers count by `discounts`; of flat stretches only the ends are kept.
    """
    weights = np.broadcast_to(discounts(values.shape[1]), values.shape)[there]
    g, row = values[there], np.nonzero(there)[0]
    _, of_value = np.unique(g, return_inverse=True)
    of_values = np.bincount(of_value, weights)
    middle = (np.cumsum(of_values) - of_values / 2) / of_values.sum()  # equal scores share a point, by their middle rank
    points = max(2, min(POINTS, len(g) // LEAST_ANSWERS))
    _, place = np.unique((middle * points).astype(np.int64)[of_value], return_inverse=True)
    x = np.bincount(place, weights * g) / np.bincount(place, weights)

    def by_row(of_answer: Float64Array) -> Float64Array:
        sums: Float64Array = np.bincount(row * len(x) + place, of_answer, minlength=len(values) * len(x)).astype(np.float64)
        return sums.reshape(len(values), len(x))

    count, mass, right = by_row(np.ones(len(g))), by_row(weights), by_row(weights * hits[there])
    random, heights = np.random.default_rng(0), np.zeros(len(x))
    for _ in range(BAGS):
        bag = random.multinomial(len(values), np.full(len(values), 1 / len(values))).astype(np.float64)
        n, w = bag @ count, np.maximum(bag @ mass, 1e-9)
        height = ((bag @ right) / w * n + 0.5) / (n + 1)
        heights += isotonic_regression(height, weights=w).x / BAGS
    x, first = np.unique(x, return_index=True)  # scores that differ in the last bit may have one mean
    heights = np.maximum.accumulate(heights[first]).clip(0, 1)  # to the last bit
    if len(x) == 1:  # one score for nearly everything: flat
        x, heights = np.array([x[0], np.nextafter(x[0], np.inf)]), heights.repeat(2)
    kept = np.ones(len(x), dtype=bool)
    kept[1:-1] = (heights[1:-1] != heights[:-2]) | (heights[1:-1] != heights[2:])
    return x[kept], heights[kept]


def discounts(depth: int) -> Float64Array:
    """Return 1/log2(r + 1) of the ranks r = 1 … depth, what a hit there is worth in nDCG: how much an answer counts here."""
    weights: Float64Array = 1 / np.log2(np.arange(2, depth + 2))
    return weights


def thresholds_of(probabilities: Float64Array, hits: BoolArray) -> tuple[float, ...]:
    """Return, for precisions of 0.01, 0.02, …, the least probability t whose answers are surely right so often, up to the last.

    Sure is a lower bound: Wilson's for the precision of all answers of probability t or more, one-sided at 95 %, with as many
    trials as rows that have one. Answers of a row are right or wrong together, and ten lucky rows must not promise 100 %.
    `probabilities` (N, K), NaN where there is no answer, must be of curves that were fitted on other rows.
    """
    rows = np.broadcast_to(np.arange(len(probabilities))[:, None], probabilities.shape)
    there = ~np.isnan(probabilities)
    p, y, row = probabilities[there], hits[there], rows[there]
    order = np.argsort(-p, kind="stable")
    p, y, row = p[order], y[order], row[order]
    fresh = np.zeros(len(p), dtype=np.int64)
    fresh[np.unique(row, return_index=True)[1]] = 1
    last = np.append(p[1:] != p[:-1], True)  # answers of one probability are let in together
    sure = wilson(np.cumsum(y)[last] / (np.flatnonzero(last) + 1), np.cumsum(fresh)[last])
    values = p[last]
    kept: list[float] = []
    for precision in np.arange(1, GRID) / GRID:
        enough = np.flatnonzero(sure >= precision)
        if len(enough) == 0:
            break
        kept.append(float(values[enough[-1]]))
    return tuple(kept)


def wilson(share: Float64Array, trials: Int64Array) -> Float64Array:
    """Return the lower end of Wilson's interval for a share seen in so many trials, one-sided at 95 %."""
    z, n = SURE, trials.astype(np.float64)
    centre = share + z * z / (2 * n)
    spread = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    lower: Float64Array = (centre - spread) / (1 + z * z / n)
    return lower


def forget(folder: Path) -> None:
    """Take the calibration out of the folder of a version that is being filled."""
    (folder / FILE).unlink(missing_ok=True)


__all__ = ["FILE", "Calibration", "Watched", "fit", "forget", "temperature_of"]
