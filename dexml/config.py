"""TOML files and `--set section.key=value` into frozen pydantic models; a key nobody knows is an error with a suggestion."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from dexml.errors import InputError
from dexml.table import explain

M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """A section of a config: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Choice(BaseModel):
    """A row of a table and its options: `name` picks the class, every other key is one of that class's options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Return the options as written, unchecked; the table checks them."""
        return dict(self.model_extra or {})

    def with_options(self, **options: Any) -> Choice:
        """Return the same row with some options set."""
        return Choice.model_validate({"name": self.name, **self.options, **options})


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file. Raises InputError with file, line and column."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"config: the file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: {error}") from None


def override(values: dict[str, Any], setting: str) -> None:
    """Set one `section.key=value` in `values`; the value is TOML, and anything that is no TOML is a string."""
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {setting!r}: expected section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    place = values
    for part in parts[:-1]:
        below = place.setdefault(part, {})
        if not isinstance(below, dict):
            raise InputError(f"--set {setting!r}: {part!r} is a value, not a section")
        place = below
    place[parts[-1]] = value


def validate(model: type[M], values: Mapping[str, Any]) -> M:
    """Return `values` as a `model`; raises InputError with one line about the first thing that is wrong."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        location = error.errors()[0]["loc"]
        raise explain(error, "", _known_keys(model, location)) from None


def load(model: type[M], path: Path, settings: Sequence[str] = ()) -> M:
    """Return the config in `path` with the overrides of `settings`, checked."""
    values = read_toml(path)
    for setting in settings:
        override(values, setting)
    return validate(model, values)


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys known beside the last part of `location`."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        if field is None:
            break
        nested = [
            kind
            for kind in (field.annotation, *get_args(field.annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not nested:
            break
        model = nested[0]
    return list(model.model_fields)
