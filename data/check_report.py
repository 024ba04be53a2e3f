"""A check of a data set as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data.check import Check

_STYLES = {"error": "bold red", "warning": "yellow"}


def show(checked: Check, console: Console) -> None:
    """Print counts, label frequencies and findings."""
    labels = f"{checked.labels['count']:,} labels" if checked.labels else "no labels"
    console.print(f"[bold]{escape(checked.path)}[/]: {checked.format}, {labels}", soft_wrap=True)
    if checked.splits:
        console.print(_splits(checked.splits))
    if checked.frequency:
        console.print(_frequency(checked.frequency))
    for finding in checked.findings:
        often = f", {finding.count:,} times" if finding.count > 1 else ""
        line = Text.assemble((finding.level, _STYLES[finding.level]), f" in {finding.where}: {finding.what}{often}")
        console.print(line, soft_wrap=True)
        for example in finding.examples:
            console.print(Text(f"  {example}", style="dim"), soft_wrap=True)
    errors = sum(finding.level == "error" for finding in checked.findings)
    console.print(f"{_some(errors, 'error')}, {_some(len(checked.findings) - errors, 'warning')}")


def _splits(splits: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in splits:
        table.add_column(Text(name), justify="right")
    for fact in next(iter(splits.values())):
        values = [counts[fact] for counts in splits.values()]
        table.add_row(fact.replace("_", " "), *["-" if value is None else f"{value:,}" for value in values])
    return table


def _frequency(frequency: Mapping[str, Any]) -> Table:
    """Return the labels by how many training rows they have, and by their share of all pairs."""
    table = Table(box=None, pad_edge=False)
    table.add_column("training rows of a label")
    table.add_column("labels", justify="right")
    for name, count in frequency["labels_by_training_rows"].items():
        table.add_row(name, f"{count:,}")
    for name in ("head", "torso", "tail"):
        table.add_row(f"{name}: a third of the pairs", f"{frequency[name]:,}")
    return table


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


__all__ = ["show"]
