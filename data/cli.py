"""`dexml data`: make data sets."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def command() -> None:
    """Make data sets."""


@command.command(epilog="Example:  dexml data pydocs demo/data && dexml train training/configs/demo.toml")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws the held-out sentences.")
@click.option("--force", is_flag=True, help="Write into DIR even if something else is there, and even if it is up to date.")
def pydocs(folder: Path, seed: int, force: bool) -> None:
    """Build the embedded demo set in DIR, from the documentation of the installed scientific packages.

    Labels are the public callables of numpy, scipy, scikit-learn and torch; queries are sentences of their docstrings. DIR
    gets labels.jsonl, train.jsonl, test.jsonl (held-out sentences), unseen.jsonl (callables that train never names) and
    pydocs.json (versions and counts). Takes seconds, needs no network; the same packages give the same files.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from data.pydocs import RECORD, build, up_to_date
    from dexml.errors import InputError

    made = None if force else up_to_date(folder, seed)
    if made is not None:
        click.echo(f"{folder} is up to date: {_counts(made['counts'])}")
        return
    if not force and folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise InputError(f"{folder}: the folder is not empty and no earlier pydocs set; --force writes into it all the same")
    console = Console(stderr=True)
    columns = (TextColumn("reading documentation"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        summary = build(folder, seed, lambda what, share: bar.update(task, completed=share, description=what))
    for package in summary["missing"]:
        console.print(f"{package} is not installed and was left out (the extra dexml\\[demo] brings scikit-learn)")
    versions = ", ".join(f"{package} {version}" for package, version in summary["packages"].items())
    click.echo(f"{folder}: {_counts(summary['counts'])} ({versions})")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


@command.command(epilog="Example:  dexml data crowd answers.csv labelled")
@click.argument("answers", type=click.Path(path_type=Path, dir_okay=False), metavar="ANSWERS.csv")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="OUT")
def crowd(answers: Path, folder: Path) -> None:
    """Make one data set of many annotators' ANSWERS.csv, with the columns worker, item and label.

    Each item gets its most probable label and its most confusing one, weighted by how likely each is (the Top-Two model).
    OUT gets labels.jsonl, train.jsonl with labels and weights, and workers.csv, which says how reliable each worker is.
    """
    from data.crowd import read_answers, write_crowd

    read = read_answers(answers)
    found = write_crowd(read, folder)
    unsure = int((found.probability < 2 / 3).sum())
    click.echo(
        f"{folder}: {len(read.items):,} items, {len(read.labels):,} labels, {len(read.workers):,} workers; "
        f"{unsure:,} items are as good as undecided (below 2 to 1)"
    )
