"""What is tuned for: figures that are to be high or low, and bounds that other figures must keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dexml.errors import InputError
from dexml.table import unknown

Figures = dict[str, float]

HIGH = ("P@1", "P@3", "P@5", "recall")  # in percent but for recall, in [0, 1]
LOW = ("cost", "latency", "memory", "seconds")
UNITS = {"cost": "distances a query", "latency": "ms a query", "memory": "MB", "seconds": "s of training"}
SEARCH = ("recall", "P@1", "P@3", "P@5", "cost", "latency", "memory")
TRAINING = ("P@1", "P@3", "P@5", "seconds", "latency", "memory")


@dataclass(frozen=True)
class Goals:
    """The `objectives`, by name, and `bounds`: at least so much of a figure of HIGH, at most of one of LOW."""

    objectives: tuple[str, ...]
    bounds: Mapping[str, float]

    @staticmethod
    def of(objectives: Sequence[str], bounds: Sequence[str], known: Sequence[str]) -> Goals:
        """Return the goals of `objectives` and of `bounds`, each NAME=NUMBER. Raises InputError for a name not `known`."""
        limits = {}
        for text in bounds:
            name, _, number = text.partition("=")
            try:
                limits[name] = float(number)
            except ValueError:
                raise InputError(f"--bound {text!r}: expected NAME=NUMBER, such as recall=0.99") from None
            if not math.isfinite(limits[name]):
                raise InputError(f"--bound {text!r}: the number must be finite")
        for name in (*objectives, *limits):
            if name not in known:
                raise unknown("figure", name, list(known))
        if len(set(objectives)) < len(objectives):
            raise InputError("--objective: the same figure is given twice")
        return Goals(tuple(objectives), limits)

    @property
    def directions(self) -> list[str]:
        """Optuna's word for each objective."""
        return ["maximize" if name in HIGH else "minimize" for name in self.objectives]

    def values(self, figures: Figures) -> list[float]:
        """Return the objectives' figures."""
        return [figures[name] for name in self.objectives]

    def broken(self, figures: Figures) -> list[float]:
        """Return, for each bound, by what share of it a figure is on the wrong side; 0 or less where the bound is kept."""
        return [
            (limit - figures[name] if name in HIGH else figures[name] - limit) / max(abs(limit), 1e-9)
            for name, limit in self.bounds.items()
        ]

    def badness(self, figures: Figures) -> tuple[float, float]:
        """Return how bad figures are for the first objective, to be compared from the left: bounds broken, then objective."""
        return sum(max(0.0, share) for share in self.broken(figures)), loss(self.objectives[0], figures)

    def kept(self, figures: Figures) -> bool:
        """Whether all bounds are."""
        return all(share <= 0 for share in self.broken(figures))

    def dominated(self, figures: Figures, by: Figures) -> bool:
        """Whether figures are nowhere better than others in the objectives, and somewhere worse."""
        mine, others = ([loss(name, some) for name in self.objectives] for some in (figures, by))
        return mine != others and all(other <= own for own, other in zip(mine, others, strict=True))

    def __str__(self) -> str:
        bounds = (f"{name} {'≥' if name in HIGH else '≤'} {limit:g}" for name, limit in self.bounds.items())
        return ", ".join([*(f"{'highest' if n in HIGH else 'least'} {n}" for n in self.objectives), *bounds])


def loss(name: str, figures: Figures) -> float:
    """Return a figure so that less is better."""
    return -figures[name] if name in HIGH else figures[name]


def shown(name: str, value: float) -> str:
    """Return a figure with the digits that it is worth."""
    if name == "recall":
        return f"{value:.4f}"
    if name in HIGH:
        return f"{value:.2f}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def told(figures: Figures) -> str:
    """Return figures in words."""
    return " · ".join(f"{name} {shown(name, value)}" for name, value in figures.items())


__all__ = ["HIGH", "LOW", "SEARCH", "TRAINING", "UNITS", "Figures", "Goals", "loss", "shown", "told"]
