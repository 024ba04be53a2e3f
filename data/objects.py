"""JSON objects, one a line, and their fields: every complaint names file, line and field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data.lines import Tell, complaint, excerpt, id_complaint, read_lines
from dexml.errors import InputError


def read_objects(path: Path, tell: Tell | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place ("FILE, line N") and the JSON object of each line; blank lines are skipped.

    Raises InputError for a key that stands twice, of which `json` would keep the last, and for NaN and Infinity.
    """
    for number, line in enumerate(read_lines(path, tell), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parse(line, where)
        if not isinstance(row, dict):
            raise InputError(f'{where}: an object like {{"text": …}} is needed, got {excerpt(row)}')
        yield where, row


def parse(line: str, where: str) -> object:
    """Return the JSON value of `line`, more strictly than `json.loads` does."""
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}, column {error.colno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; brackets nested without end
        raise InputError(f"{where}: not JSON that can be read: {error}") from None


def field(row: dict[str, Any], name: str, where: str) -> object:
    """Return a field that has to be there."""
    if name not in row:
        there = ", ".join(excerpt(known) for known in islice(row, 8)) or "none"
        raise InputError(f"{where}: the field {name!r} is missing (there: {there})")
    return row[name]


def text_of(row: dict[str, Any], where: str) -> str:
    """Return the field "text", fit to be encoded."""
    text = field(row, "text", where)
    if not isinstance(text, str):
        raise InputError(f"{where}, text: a string is needed, got {excerpt(text)}")
    if fault := complaint(text):
        raise InputError(f"{where}, text: {fault}")
    return text


def name_of(value: object, where: str) -> str:
    """Return the name that a string or an integer is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{where}: a string or an integer is needed, got {excerpt(value)}")
    return value


def id_of(row: dict[str, Any], key: str, where: str) -> str:
    """Return the field `key`, fit to be a label's id."""
    name = name_of(field(row, key, where), f"{where}, {key}")
    if fault := id_complaint(name):
        raise InputError(f"{where}, {key}: {fault}")
    return name


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the field {excerpt(double)} stands twice")
    return made


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)

__all__ = ["field", "id_of", "name_of", "parse", "read_objects", "text_of"]
