"""Tables of extensions: a name, the class behind it as "module:Class", imported on first use and built from its options.

A class's keyword-only constructor parameters are its option schema, so a new option needs no edit anywhere else.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from dexml.errors import InputError

T = TypeVar("T")


def unknown(what: str, name: str, known: list[str]) -> InputError:
    """Return the error for a name nobody knows, with the nearest known one."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {what} {name!r}{hint} (known: {', '.join(sorted(known))})")


@cache
def option_model(cls: type) -> type[BaseModel]:
    """Return a pydantic model of the keyword-only parameters of `cls`, frozen, with unknown keys forbidden."""
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(cls, eval_str=True).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[parameter.name] = (parameter.annotation, default)
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), arbitrary_types_allowed=True, allow_inf_nan=False)
    return create_model(f"{cls.__name__}Options", __config__=config, **fields)


def explain(error: ValidationError, where: str, known: list[str]) -> InputError:
    """Return pydantic's first complaint as one line that names the key, the value and what was allowed."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    path = f"{where}.{key}" if where and key else (where or key)
    if first["type"] == "extra_forbidden":
        near = get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return InputError(f"unknown key {path!r}{hint} (known: {', '.join(sorted(known))})")
    if first["type"] == "missing":
        return InputError(f"{path}: a value is needed")
    return InputError(f"{path}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}")


@dataclass(frozen=True)
class Table(Generic[T]):
    """Rows `name -> "module:Class"` of one `kind`; the order of the rows is the order of preference."""

    kind: str
    rows: Mapping[str, str]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> type[T]:
        """Import and return the class behind `name`. Raises InputError for an unknown name."""
        if name not in self.rows:
            raise unknown(self.kind, name, list(self.rows))
        module, _, attribute = self.rows[name].partition(":")
        return cast("type[T]", getattr(importlib.import_module(module), attribute))

    def options(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return `options` checked and completed with the defaults of `name`'s class."""
        model = option_model(cast("type", self[name]))
        try:
            checked = model.model_validate(dict(options))
        except ValidationError as error:
            raise explain(error, self.kind, list(model.model_fields)) from None
        return {field: getattr(checked, field) for field in model.model_fields}

    def build(self, name: str, options: Mapping[str, Any] | None = None, *arguments: Any) -> T:
        """Return an instance of `name` made from positional `arguments` and checked `options`."""
        return self[name](*arguments, **self.options(name, options or {}))


__all__ = ["Table", "explain", "option_model", "unknown"]
