"""`dexml data`: make, convert and check data sets."""

from __future__ import annotations

import json
from pathlib import Path

import click

from data import FORMATS
from data.lines import staged, write_lines


@click.group()
def command() -> None:
    """Make, convert and check data sets."""


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


_FOLDER = click.Path(path_type=Path, file_okay=False)
_FROM = click.option("--from", "format_", default="auto", metavar="FORMAT", help="The format; default: what the files tell.")


@command.command(epilog="Example:  dexml data convert LF-AmazonTitles-131K mine --to jsonl")
@click.argument("source", type=_FOLDER, metavar="A")
@click.argument("target", type=_FOLDER, metavar="B")
@click.option("--to", "wanted", required=True, metavar="FORMAT", help=f"What B is written in: {', '.join(FORMATS)}.")
@_FROM
@click.option("--split", "chosen", multiple=True, metavar="NAME", help="Only this split; may be given more than once.")
@click.option("--force", is_flag=True, help="Write into B even if something is there.")
def convert(source: Path, target: Path, wanted: str, format_: str, chosen: tuple[str, ...], force: bool) -> None:
    """Write the data set in folder A into folder B in another format, filter files included.

    What a format cannot hold is refused, with the row: a line break in a text where a line is a row, a space in an id where
    spaces separate names. Formats without ids number the labels from 0.
    """
    from rich.console import Console

    from data import open_format
    from data.progress import reading
    from dexml.errors import InputError

    kind = FORMATS[wanted]
    if not force and target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target}: the folder is not empty; --force writes into it all the same")
    if source.resolve() == target.resolve():
        raise InputError(f"{target}: is the folder that is read")
    with reading(Console(stderr=True)) as tell:
        files = open_format(source, format_, tell)
        labels = files.labels()
        splits = {name: files.read(name) for name in chosen or files.splits()}
    kind.write(target, labels, splits)
    click.echo(
        f"{target}: {_counts({'labels': len(labels), **{name: len(split) for name, split in splits.items()}})} ({wanted})"
    )


@command.command(epilog="Example:  dexml data check mine --json report.json")
@click.argument("folder", type=_FOLDER, metavar="DIR")
@_FROM
@click.option("--long", type=click.IntRange(min=1), default=2000, show_default=True, help="Characters of a text called long.")
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="Write all of it as JSON, too.")
def check(folder: Path, format_: str, long: int, out: Path | None) -> None:
    """Read all of DIR, say what is in it and what is wrong with it.

    Errors keep it from being read: counts that disagree, numbers out of range, damaged files, wrong encodings, ids given
    twice. Warnings are texts that stand twice, rows without labels, labels without training rows, texts of train that stand
    in test too, texts that are a label's own, traces of a wrong encoding. Exits with 1 where there is an error.
    """
    import sys

    from rich.console import Console

    from data import open_format, tell_format
    from data.check import check as check_all
    from data.check_report import show
    from data.progress import reading

    with reading(Console(stderr=True)) as tell:
        name = tell_format(folder) if format_ == "auto" and folder.is_dir() else format_
        checked = check_all(open_format(folder, name, tell), name, long)
    show(checked, Console(highlight=False))
    if out is not None:
        with staged() as sibling:
            write_lines(sibling(out), [json.dumps(checked.as_json(), ensure_ascii=False, indent=1)])
    if checked.broken:
        sys.exit(1)


@command.command("filter", epilog="Example:  dexml data filter mine && dexml evaluate runs/mine --data mine")
@click.argument("folder", type=_FOLDER, metavar="DIR")
@_FROM
def filter_(folder: Path, format_: str) -> None:
    """Write filter_labels_SPLIT.txt for each split of DIR: pairs that are not to be credited.

    The rule is the one of the XC repository's sets with label texts: where a row and a label are the same thing, finding it is
    no merit. A row and a label are the same where their texts are the same, to the letter; the pair is written whether or not
    the label is a positive of the row. Pairs in a filter file that is there stay. What is measured leaves
    excluded pairs out before the k best are taken.
    """
    from rich.console import Console

    from data import open_format
    from data.filters import filter_lines, filter_name, filter_path, same_text, union
    from data.progress import reading
    from dexml.errors import InputError

    with reading(Console(stderr=True)) as tell:
        files = open_format(folder, format_, tell)
        labels = files.labels()
        splits = {name: files.read(name) for name in files.splits()}
    written: dict[str, int] = {}
    with staged() as sibling:
        for name, split in splits.items():
            path = filter_path(files.root, name)
            if split.excluded is not None and path is None:
                raise InputError(f"{folder}: the rows of {name!r} say what is excluded already; nothing was written")
            pairs = same_text(split.texts, labels.texts)
            write_lines(sibling(path or files.root / filter_name(name)), filter_lines(union(split.excluded, pairs)))
            written[name] = len(pairs.indices)
    for name, count in written.items():
        click.echo(f"{filter_path(files.root, name)}: {count:,} rows' texts are a label's own")


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
