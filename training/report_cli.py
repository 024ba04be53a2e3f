"""`dexml report`: what a run was, and what its label rows are worth in fewer dimensions and bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from training.bits import Point

EPILOG = """Examples:

\b
  dexml report runs/mine                                    runs/mine/report.html
  dexml report bits runs/mine                               runs/mine/bits.html: P@k against the bits of a label
  dexml report bits runs/mine --with runs/four_bits --json bits.json
"""


class Reports(click.Group):
    """A group whose first command is meant where none is named: `dexml report RUN`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that was named, or `run`."""
        return super().resolve_command(ctx, args if args[0] in self.commands else ["run", *args])


@click.group(cls=Reports, epilog=EPILOG, subcommand_metavar="[bits] RUN [OPTIONS]")
def report() -> None:
    """Write RUN/report.html anew: loss, learning rate, gradient norm, validation and test figures, as far as they go.

    `dexml train` and `dexml evaluate` do the same at their end; this is for a run that still goes on, or was killed. With
    "bits", write RUN/bits.html: what its label rows are worth in fewer dimensions and bits.
    """


@report.command()
@click.argument("run", type=click.Path(path_type=Path))
def run(run: Path) -> None:
    """Write RUN/report.html anew; the word "run" may be left out."""
    from training.report import write

    click.echo(write(run))


def _numbers(least: int) -> Callable[[click.Context, click.Parameter, str | None], list[int] | None]:
    def read(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
        if value is None:
            return None
        parts = value.split(",")
        if not all(part.strip().isdigit() and int(part) >= least for part in parts):
            raise click.BadParameter(f"whole numbers from {least} on with commas between them are needed, got {value!r}")
        return [int(part) for part in parts]

    return read


@report.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", "folder", type=click.Path(path_type=Path), help="The data set; default: the one it was trained on.")
@click.option("--split", default="test", show_default=True, help="Which split of it.")
@click.option("--dimensions", callback=_numbers(1), metavar="D,D,…", help="Of the rows; default: all, 3/4, 1/2, 1/4, 1/8.")
@click.option("--bits", callback=_numbers(2), metavar="B,B,…", default="32,8,6,4,3", show_default=True, help="A number.")
@click.option(
    "--with", "others", multiple=True, type=click.Path(path_type=Path), help="Another run, such as a student, as it is."
)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write every point to this file.")
@click.option("--page", "pages", type=click.Path(path_type=Path), help="Where the page goes; default: RUN/bits.html.")
def bits(
    run: Path,
    folder: Path | None,
    split: str,
    dimensions: list[int] | None,
    bits: list[int],
    others: Sequence[Path],
    output: Path | None,
    pages: Path | None,
) -> None:
    """Measure the label rows of RUN, a run or a bundle, in fewer dimensions and bits, for choosing an index.

    Rows are projected and rounded after training; `dexml distill` trains a student for its size, and --with puts it beside
    them.
    """
    from data import open_format
    from dexml import versions
    from dexml.errors import InputError
    from index.retriever import Retriever
    from training import bits as of_bits
    from training.cli import check_outputs, write_output
    from training.evaluate import numbers_of
    from training.record import write_text

    check_outputs({"--json": output, "--page": pages})
    if unknown := sorted(set(bits) - set(of_bits.WIDTHS)):
        raise InputError(f"--bits: {unknown[0]} is none of {', '.join(map(str, sorted(of_bits.WIDTHS)))}")
    retriever = Retriever.open(run)
    facts, width = retriever.bundle.manifest.data, retriever.dimension
    if dimensions is None:
        dimensions = sorted({width, width * 3 // 4, width // 2, width // 4, width // 8} - {0}, reverse=True)
    if max(dimensions) > width:
        raise InputError(f"--dimensions: the rows have {width}, {max(dimensions)} is more")
    files = open_format(folder or Path(facts.path), "auto" if folder else facts.format)
    labels, rows = files.labels(), files.read(split)
    found = list(of_bits.points(retriever, numbers_of(labels, retriever), rows, dimensions, bits))
    beside = []
    for path in others:
        other = Retriever.open(path)
        beside.append(of_bits.whole(other, numbers_of(labels, other), rows))
    _show(found, beside, len(labels))
    document = {
        "run": str(run),
        "split": split,
        "labels": len(labels),
        "points": [point.as_json() for point in found],
        "with": [point.as_json() for point in beside],
    }
    if output is not None:
        write_output(output, json.dumps(document, indent=1) + "\n")
    place = pages or versions.root_of(run).parent / "bits.html"
    write_text(place, of_bits.document(retriever.bundle.manifest.name, split, len(labels), found, beside))
    click.echo(f"page: {place}", err=True)


def _show(found: Sequence[Point], others: Sequence[Point], labels: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from training.bits import FIGURES, fewest, front

    best = {id(point) for point in front([*found, *others])}
    table = Table(title="percent; • where no rows of as few bits have a higher P@1")
    for column in ("", "numbers", "bits", "bits a label", "all labels, MB", *FIGURES, "•"):
        table.add_column(column, justify="right" if column else "left")
    for point in [*found, *others]:
        sizes = [str(point.dimension), str(point.bits), f"{point.total:,}", f"{point.total * labels / 8e6:,.2f}"]
        figures = [f"{point.figures[figure]:.2f}" for figure in FIGURES]
        table.add_row(escape(point.name), *sizes, *figures, "•" if id(point) in best else "")
    console = Console(highlight=False)
    console.print(table)
    for within in (0.5, 1.0):
        point = fewest(found, within)
        size = f"{point.dimension} numbers of {point.bits} bits, {point.total:,} bits a label"
        console.print(f"within {within} of P@1 and P@5 of the whole rows: {size}")
