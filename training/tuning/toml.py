"""A config as TOML: the standard library reads it, and does not write it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def toml(values: Mapping[str, Any]) -> str:
    """Return a table of plain values, lists of these, and tables, as TOML that `tomllib` reads to the same."""
    return "\n".join(_lines(values, ())) + "\n"


def _lines(values: Mapping[str, Any], above: tuple[str, ...]) -> list[str]:
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in values.items() if key not in tables]
    for key, table in tables.items():
        path = (*above, _key(key))
        lines += ["", f"[{'.'.join(path)}]", *_lines(table, path)]
    return lines


def _key(key: str) -> str:
    return key if key.replace("-", "_").isidentifier() and key.isascii() else json.dumps(key, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {_value(some)}' for key, some in value.items())}}}"
    if isinstance(value, str):  # DEL is the one that JSON leaves and TOML does not
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    return str(value.isoformat())  # dates and times


__all__ = ["toml"]
