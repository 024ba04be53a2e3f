"""`dexml compare`: two runs, or score files, over the same queries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from training.compare import Difference, Side
    from training.scores import Judge

EPILOG = """Examples:

\b
  dexml compare runs/old runs/new
  dexml compare old.npz new.trec --data MY_DATA --json compare.json --pictures pictures
  dexml compare 'runs/old-seed*' 'runs/new-seed*'
"""


@click.command(epilog=EPILOG)
@click.argument("a")
@click.argument("b")
@click.option("--data", "folder", type=click.Path(path_type=Path), help="The data set; default: the one run A was trained on.")
@click.option("--split", default="test", show_default=True, help="Which split of it.")
@click.option("--propensity", metavar="A,B|NAME", help="Constants of PSP; default: run A's, or 0.55,1.5.")
@click.option("--draws", type=click.IntRange(100, 100_000), default=2000, show_default=True, help="Of the bootstrap.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws the queries.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write every figure's difference to this file.")
@click.option("--pictures", type=click.Path(path_type=Path, file_okay=False), help="Write charts (SVG) and their CSV to DIR.")
def compare(
    a: str,
    b: str,
    folder: Path | None,
    split: str,
    propensity: str | None,
    draws: int,
    seed: int,
    output: Path | None,
    pictures: Path | None,
) -> None:
    """Say how far B is above A on the same queries, with a 95 % interval and the probability that it is luck.

    A and B are run folders that `dexml evaluate` has measured, folders of its --report, or score files (scipy CSR in .npz, or
    TREC runs). A quoted pattern that matches several is one side with several seeds: figures are then mean ± deviation, and
    seeds are drawn too.
    """
    from rich.console import Console

    from training import record
    from training.cli import check_outputs, write_output
    from training.compare import Side, won
    from training.compare import compare as between
    from training.plots import WINS
    from training.scores import Judge, files_of, propensity_of

    check_outputs({"--json": output})
    of_a, of_b = files_of(a, split), files_of(b, split)
    facts: dict[str, Any] = {}
    if of_a[0].parent.name == record.EVALUATIONS:
        facts = (record.read(of_a[0].parent.parent) or {}).get("config", {}).get("data", {})
    if folder is None and "path" not in facts:
        raise click.UsageError("A is no run folder: --data DIR is needed")
    constants = propensity_of(propensity)
    if propensity is None and "propensity" in facts:
        constants = (facts["propensity"][0], facts["propensity"][1])
    judge = Judge.of(folder or Path(facts["path"]), split, constants)
    sides = [
        Side.of([judge.ranked(path, 100) for path in paths], judge.split.positives, judge.weights) for paths in (of_a, of_b)
    ]
    found = between(sides[0], sides[1], draws, seed)
    _show(found, a, b, judge, Console(highlight=False))
    document = {
        "a": [str(path) for path in of_a],
        "b": [str(path) for path in of_b],
        "split": split,
        "queries": len(judge.split),
        "draws": draws,
        "seed": seed,
        "figures": [difference.as_json() for difference in found],
        "queries_won": {name: won(sides[0], sides[1], name) for name in WINS},
    }
    if output is not None:
        write_output(output, json.dumps(document, indent=1) + "\n")
    if pictures is not None:
        _draw(pictures, sides[0], sides[1], judge)


def _show(found: Sequence[Difference], a: str, b: str, judge: Judge, console: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    from training.compare import rows

    table = Table(title=f"A {escape(a)}, B {escape(b)}: {len(judge.split):,} queries, percent")
    for name in ("", "A", "B", "B − A", "95 % interval", "p"):
        table.add_column(name, justify="right")
    for row in rows(found):
        table.add_row(*row)
    console.print(table)


def _draw(folder: Path, a: Side, b: Side, judge: Judge) -> None:
    """Write wins.svg, queries.svg and, where training rows say how frequent labels are, deciles.svg, each with its CSV."""
    from training import plots
    from training.bars import standalone
    from training.record import write_text

    drawn = [plots.wins(a, b), plots.by_query(a, b)]
    if judge.counts is not None:
        drawn.append(plots.deciles({"A": a, "B": b}, judge.counts))
    for plot in drawn:
        path = folder / plot.file
        write_text(path.with_suffix(".svg"), standalone(plot.svg, plot.title, plot.names, plot.painted))
        write_text(path, plot.csv())
