"""What is searched: keys with a list of values each, as "loss.temperature=0.03,0.06", or as a TOML file with lists."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dexml.config import read_toml
from dexml.errors import InputError
from training.tuning.walk import Place

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = str | int | float | bool
Settings = dict[str, Value]  # a value for each key


@dataclass(frozen=True)
class Space:
    """A grid: for each key its values, numbers ascending, anything else in the order given."""

    axes: Mapping[str, tuple[Value, ...]]

    @staticmethod
    def of(given: Sequence[str], option: str = "--space") -> Space:
        """Return the space of `given`, each KEY=VALUE,VALUE,… or the path of a TOML file. Raises InputError."""
        found: dict[str, tuple[Value, ...]] = {}
        for text in given:
            for key, values in _axes(text, option):
                if key in found:
                    raise InputError(f"{option}: {key} is given twice")
                found[key] = _checked(key, values, option)
        return Space(found)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each key has."""
        return tuple(map(len, self.axes.values()))

    def __len__(self) -> int:
        return math.prod(self.sizes)

    def settings(self, place: Place) -> Settings:
        """Return the values at a point of the grid."""
        return {key: values[number] for (key, values), number in zip(self.axes.items(), place, strict=True)}

    def place(self, settings: Mapping[str, Any]) -> Place | None:
        """Return the point with these settings, whatever else they hold; None where it is not on the grid."""
        numbers = []
        for key, values in self.axes.items():
            if settings.get(key) not in values:
                return None
            numbers.append(values.index(settings[key]))
        return tuple(numbers)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's form: the number of the value where values are numbers, so that their order counts, else a choice."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        return {
            key: IntDistribution(0, len(values) - 1) if ordered(values) else CategoricalDistribution(range(len(values)))
            for key, values in self.axes.items()
        }

    def as_json(self) -> dict[str, list[Value]]:
        """Return the axes in JSON's terms."""
        return {key: list(values) for key, values in self.axes.items()}


def ordered(values: Sequence[Value]) -> bool:
    """Whether values are numbers."""
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def words(settings: Mapping[str, Value]) -> str:
    """Return settings in words."""
    return " ".join(f"{key}={value}" for key, value in settings.items())


def _axes(text: str, option: str) -> Iterator[tuple[str, Any]]:
    key, equals, values = text.partition("=")
    if not equals:
        if not text.endswith(".toml"):
            raise InputError(f"{option} {text!r}: expected KEY=VALUE,VALUE,… or the path of a TOML file")
        yield from _flat(read_toml(Path(text)), ())
        return
    try:
        yield key.strip(), tomllib.loads(f"values = [{values}]")["values"]
    except tomllib.TOMLDecodeError:
        yield key.strip(), values.split(",")


def _flat(table: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, (*above, key))
        else:
            yield ".".join((*above, key)), value


def _checked(key: str, values: Any, option: str) -> tuple[Value, ...]:
    if not isinstance(values, list) or not values or not all(isinstance(value, (str, int, float)) for value in values):
        raise InputError(f"{option}: {key} needs a list of numbers, words or booleans, got {values!r}")
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise InputError(f"{option}: {key} holds a number that is not finite")
    if len(set(values)) < len(values):
        raise InputError(f"{option}: {key} holds a value twice")
    return tuple(sorted(values) if ordered(values) else values)


__all__ = ["Settings", "Space", "Value", "ordered", "words"]
