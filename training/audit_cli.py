"""`dexml audit`: how robust a bundle's answers are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from index.live import LiveLabels
    from training.audit.measure import Audit, Told

EPILOG = """Examples:

\b
  dexml audit runs/mine --report audit.html
  dexml audit runs/mine --queries 1000 --attacked 0 --json audit.json     geometry alone: seconds
  dexml audit runs/mine --promote S1.2.3                                  how near every query is to one label
"""
SHOWN = 5  # queries on the terminal


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", "folder", type=click.Path(path_type=Path), help="The data set; default: the one that the bundle names.")
@click.option("--split", default="test", show_default=True, help="Which split of it.")
@click.option("--queries", default=100, show_default=True, type=click.IntRange(min=1), help="How many, drawn at random.")
@click.option(
    "--top", default=5, show_default=True, type=click.IntRange(min=1, max=100), help="Labels of an answer that count."
)
@click.option("--promote", metavar="ID", help="A label to bring to the first place; default: each query's tenth.")
@click.option("--attacked", default=16, show_default=True, type=click.IntRange(min=0), help="Of the queries, attack so many.")
@click.option("--iterations", default=60, show_default=True, type=click.IntRange(min=1), help="Of each attack.")
@click.option("--seed", default=0, show_default=True, help="Of the queries, lists and attacks.")
@click.option("--report", "page", type=click.Path(path_type=Path), help="Write a page with pictures to this file.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write everything, certificates too, to this file.")
def audit(
    bundle: Path,
    folder: Path | None,
    split: str,
    queries: int,
    top: int,
    promote: str | None,
    attacked: int,
    iterations: int,
    seed: int,
    page: Path | None,
    output: Path | None,
) -> None:
    """How little changes the answers of BUNDLE, which it can give at all, and what an attack on a query's input achieves.

    Answers are those of the label rows, searched exactly; training queries that lift scores are left out. Ctrl-C ends with what
    has been found.
    """
    from rich.console import Console
    from rich.markup import escape

    from data import open_format
    from dexml.errors import InputError
    from index.retriever import Retriever
    from training.audit.measure import Asked, rows_of
    from training.audit.measure import audit as measure
    from training.audit.report import html
    from training.audit.tables import document
    from training.cli import check_outputs, write_output
    from training.evaluate import numbers_of

    check_outputs({"--json": output, "--report": page})
    retriever = Retriever.open(bundle, "exact")
    facts = retriever.bundle.manifest.data
    files = open_format(folder or Path(facts.path), "auto" if folder else facts.format)
    row = None if promote is None else retriever.labels.row(promote)
    if promote is not None and row is None:
        raise InputError(f"--promote: {bundle} has no label {promote!r}")
    rows = files.read(split)
    own = rows_of(rows, numbers_of(files.labels(), retriever))
    asked = Asked(queries, top, attacked, row, seed, iterations=iterations)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _shown(console) as told:
        found = measure(retriever, rows, own, asked, told)
    _tables(found, retriever.labels)
    if not retriever.divisible:
        console.print("note: training queries lift this bundle's scores; what they change is not audited")
    if not found.finished:
        console.print("stopped: what is shown is what was finished")
    told_of = {
        "bundle": retriever.bundle.name,
        "split": split,
        "queries": len(found.rows),
        "labels": len(retriever.labels),
        "dimension": retriever.dimension,
        "top": top,
        "margin": asked.margin,
        "iterations": iterations,
        "seed": seed,
    }
    if output is not None:
        write_output(output, json.dumps(document(found, retriever.labels, told_of), ensure_ascii=False) + "\n")
    if page is not None:
        status = f"{len(found.rows):,} queries of {split}, {len(retriever.labels):,} labels, {retriever.dimension} dimensions"
        status += "" if found.finished else "; stopped before its end"
        name = retriever.bundle.manifest.name
        write_output(page, html(name, status, found, rows, retriever.labels, told_of))
        console.print(f"report: {escape(str(page))}")
    if not found.finished:
        raise SystemExit(130)


@contextmanager
def _shown(console: Console) -> Iterator[Told]:
    """Show a bar a stage on a terminal; the first Ctrl-C asks for the end."""
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from training.interrupts import interruptible

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with interruptible() as stopped, bar:
        tasks: dict[str, TaskID] = {}

        def told(stage: str, done: int, total: int) -> bool:
            if stage not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)
            return stopped()

        yield told


def _tables(found: Audit, labels: LiveLabels) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from training.audit import tables

    console = Console(highlight=False, soft_wrap=True)
    made: tuple[tuple[str, Callable[[], tables.Table], bool], ...] = (
        ("how little changes an answer", lambda: tables.of_pushes(found), bool(found.orders)),
        ("labels that come in most easily", lambda: tables.of_labels(found, labels, "rises"), bool(found.entries)),
        ("lists that can be returned", lambda: tables.of_reach(found), bool(found.reach)),
        ("attacks on token embeddings", lambda: tables.of_attacks(found), bool(found.strikes)),
    )
    for title, make, there in made:
        if not there:
            continue
        heads, rows = make()
        table = Table(title=title)
        for number, head in enumerate(heads):
            table.add_column(head, justify="right" if number else "left", no_wrap=number == 0)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    for place in tables.fragile(found)[:SHOWN]:
        console.print(escape(f"row {found.rows[place]}: {tables.said(found.orders[place], labels)}"))
