"""Lines of label numbers as text files hold them, with and without values; every fault is named with its line."""

from __future__ import annotations

import re

from data.lines import excerpt
from dexml.errors import InputError

_VALUE = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"  # nan and inf are none
_NUMBER = r"\d{1,18}"
_NUMBERS = re.compile(rf"(?:{_NUMBER}(?:,{_NUMBER})*)?", re.ASCII)
_PAIR = re.compile(rf"({_NUMBER}):({_VALUE})", re.ASCII)
_PAIRS = re.compile(rf"[ \t]*(?:{_NUMBER}:{_VALUE}(?:[ \t]+|$))*", re.ASCII)
_WEIGHED = re.compile(rf"({_NUMBER})::({_VALUE})", re.ASCII)


def header(line: str | None, count: int, names: str, where: str) -> list[int]:
    """Return the `count` numbers of a file's first line, called `names`."""
    fields = (line or "").split()
    if len(fields) != count or not all(re.fullmatch(_NUMBER, field, re.ASCII) for field in fields):
        raise InputError(f"{where}: the header '{names}' is needed, {count} numbers, got {excerpt(line or '')}")
    return list(map(int, fields))


def pairs(line: str, limit: int, what: str, where: str) -> list[int]:
    """Return the numbers of "idx:val …" whose value is not 0; the numbers lie in [0, limit), the values are finite."""
    if not _PAIRS.fullmatch(line):
        strange = next((field for field in line.split() if not _PAIR.fullmatch(field)), line)
        raise InputError(f"{where}: 'number:value' pairs are needed, got {excerpt(strange)}")
    found = _PAIR.findall(line)
    checked([int(number) for number, _ in found], limit, what, where)
    return [int(number) for number, value in found if _counts(value, where)]


def numbers(field: str, limit: int, what: str, where: str) -> list[int]:
    """Return the numbers of "1,2,3", in [0, limit); "" has none."""
    if not _NUMBERS.fullmatch(field):
        raise InputError(f"{where}: {what} numbers separated by commas are needed, got {excerpt(field)}")
    return checked([int(number) for number in field.split(",") if number], limit, what, where)


def weighed(field: str, limit: int, what: str, where: str) -> list[int]:
    """Return the numbers of "1::0.5,2::1" whose value is not 0, or those of "1,2,3"."""
    if "::" not in field:
        return numbers(field, limit, what, where)
    made: list[int] = []
    for part in field.split(","):
        if (match := _WEIGHED.fullmatch(part)) is None:
            raise InputError(f"{where}: 'number::value' is needed, got {excerpt(part)}")
        checked([int(match[1])], limit, what, where)
        if _counts(match[2], where):
            made.append(int(match[1]))
    return made


def checked(found: list[int], limit: int, what: str, where: str) -> list[int]:
    """Return `found`. Raises InputError for one outside [0, limit)."""
    if found and max(found) >= limit:
        raise InputError(f"{where}: {what} {max(found)} is out of range; {what}s 0 to {limit - 1} are allowed")
    return found


def _counts(value: str, where: str) -> bool:
    number = float(value)
    if number in (float("inf"), float("-inf")):
        raise InputError(f"{where}: the value {excerpt(value)} is too large")
    return number != 0.0


__all__ = ["checked", "header", "numbers", "pairs", "weighed"]
