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

SHOWN = ("P@1", "P@3", "P@5", "nDCG@5", "R@10", "R@100", "MRR@10", "MAP@10", "PSP@1", "PSP@5", "coverage@5", "macroF1@5")
WINS = ("nDCG@1", "nDCG@5", "nDCG@10", "R@100")
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

    A and B are run folders that `dexml evaluate` has measured, or score files (scipy CSR in .npz, or TREC runs). A quoted
    pattern that matches several is one side with several seeds: figures are then mean ± deviation, and seeds are drawn too.
    """
    from rich.console import Console

    from training import record
    from training.cli import check_outputs, write_output
    from training.compare import Side
    from training.compare import compare as between
    from training.scores import Judge, propensity_of

    check_outputs({"--json": output})
    of_a, of_b = _files(a, split), _files(b, split)
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
        "queries_won": {name: _won(sides[0], sides[1], name) for name in WINS},
    }
    if output is not None:
        write_output(output, json.dumps(document, indent=1) + "\n")
    if pictures is not None:
        _draw(pictures, sides[0], sides[1], judge)


def _files(given: str, split: str) -> list[Path]:
    """Return the score files of one side. Raises InputError for a path or pattern without one."""
    import glob

    from dexml.errors import InputError
    from training.record import answers_of

    paths = [Path(given)] if Path(given).exists() else [Path(path) for path in sorted(glob.glob(given))]
    if not paths:
        raise InputError(f"{given}: no such file or folder")
    found = []
    for path in paths:
        if path.is_file():
            found.append(path)
            continue
        kept = next((file for file in (answers_of(out, split) for out in (path, path.parent)) if file.is_file()), None)
        if kept is None:
            raise InputError(
                f"{path}: no answers to {split} are kept there; `dexml evaluate {path} --split {split}` keeps them"
            )
        found.append(kept)
    return found


def _show(found: Sequence[Difference], a: str, b: str, judge: Judge, console: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"A {escape(a)}, B {escape(b)}: {len(judge.split):,} queries, percent")
    for name in ("", "A", "B", "B − A", "95 % interval", "p"):
        table.add_column(name, justify="right")
    for difference in found:
        if difference.name not in SHOWN:
            continue
        of_a, of_b = (
            f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"
            for mean, deviation in ((difference.a, difference.a_deviation), (difference.b, difference.b_deviation))
        )
        interval, p = "–", "–"
        if difference.low is not None and difference.high is not None and difference.p is not None:
            interval, p = f"{difference.low:+.2f} to {difference.high:+.2f}", f"{difference.p:.3f}"
        table.add_row(difference.name, of_a, of_b, f"{difference.difference:+.2f}", interval, p)
    console.print(table)


def _won(a: Side, b: Side, name: str) -> dict[str, int]:
    """Return for how many queries each side earns more."""
    from training.compare import per_query

    apart = per_query(a, b, name)
    return {"a": int((apart < 0).sum()), "equal": int((apart == 0).sum()), "b": int((apart > 0).sum())}


def _draw(folder: Path, a: Side, b: Side, judge: Judge) -> None:
    """Write wins.svg, queries.svg and, where training rows say how frequent labels are, deciles.svg, each with its CSV."""
    import numpy as np

    from dexml import metrics
    from training.bars import bar_chart, standalone
    from training.chart import Series, line_chart
    from training.compare import per_query
    from training.record import write_text

    won = [_won(a, b, name) for name in WINS]
    series = [
        (side, [float(of[key]) for of in won]) for side, key in (("A better", "a"), ("equal", "equal"), ("B better", "b"))
    ]
    title = "Queries won"
    write_text(folder / "wins.svg", standalone(bar_chart(title, "figure", WINS, series), title, [name for name, _ in series]))
    lines = (f"{name},{of['a']},{of['equal']},{of['b']}" for name, of in zip(WINS, won, strict=True))
    write_text(folder / "wins.csv", "\n".join(["figure,a,equal,b", *lines]) + "\n")
    name = "nDCG@10"
    apart = 100 * per_query(a, b, name)
    title = f"B − A by query, {name}, percent"
    points = [(float(place), float(value)) for place, value in enumerate(np.sort(apart), 1)]
    write_text(
        folder / "queries.svg", standalone(line_chart(title, "queries, sorted", [Series("B − A", points)]), title, ["B − A"])
    )
    lines = (f"{row},{value:.6g}" for row, value in enumerate(apart))
    write_text(folder / "queries.csv", "\n".join(["row,difference", *lines]) + "\n")
    if judge.counts is None:
        return
    k = 10
    recalls = []
    for side in (a, b):
        of_seeds = [[group.recall[k] for group in metrics.deciles(tally, judge.counts)] for tally in side.tallies]
        recalls.append(np.mean(of_seeds, axis=0).tolist())
    names = [str(number) for number in range(1, 11)]
    title = f"Labels found among the first {k}, percent"
    chart = bar_chart(title, "decile of labels, the most frequent first", names, [("A", recalls[0]), ("B", recalls[1])])
    write_text(folder / "deciles.svg", standalone(chart, title, ["A", "B"]))
    lines = (f"{name},{of_a:.6g},{of_b:.6g}" for name, of_a, of_b in zip(names, *recalls, strict=True))
    write_text(folder / "deciles.csv", "\n".join(["decile,a,b", *lines]) + "\n")
