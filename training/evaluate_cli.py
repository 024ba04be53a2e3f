"""`dexml evaluate`: a bundle, or a saved score file, measured on a split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from training.engine_options import engine_of, engine_options

if TYPE_CHECKING:
    from rich.table import Table

    from training.engines import Engine

EPILOG = """Examples:

\b
  dexml evaluate demo/run
  dexml evaluate demo/run --engine ray --workers 8
  dexml evaluate demo/run --report demo/evaluation --baseline runs/other
  dexml evaluate --scores MY_SCORES.npz --data MY_DATA --json figures.json
  dexml evaluate --scores MY_RUN.trec --data LF-AmazonTitles-131K --propensity LF-AmazonTitles-131K
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--scores", type=click.Path(path_type=Path), help="Measure this file instead: scipy CSR in .npz, or a TREC run.")
@click.option("--scores-out", type=click.Path(path_type=Path), help="Save the bundle's answers to this .npz, for --scores.")
@click.option("--propensity", metavar="A,B|NAME", help="With --scores: constants of PSP, or an XC set's; default 0.55,1.5.")
@click.option("--data", "folder", type=click.Path(path_type=Path), help="The data set; default: the one it was trained on.")
@click.option("--split", default="test", show_default=True, help="Which split of it.")
@click.option("--index", help="Another index than the bundle's own: faiss or exact.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the figures, seconds and sizes to this file.")
@click.option("--report", "pages", type=click.Path(path_type=Path), help="Write a page with pictures, and their CSV, to DIR.")
@click.option("--baseline", help="With --report: a run or report folder, or a score file, to compare with.")
@engine_options
def evaluate(
    bundle: Path | None,
    scores: Path | None,
    scores_out: Path | None,
    propensity: str | None,
    folder: Path | None,
    split: str,
    index: str | None,
    output: Path | None,
    pages: Path | None,
    baseline: str | None,
    engine: str,
    workers: int | None,
    address: str | None,
) -> None:
    """Measure BUNDLE on a split, through the same path that serves it; figures in percent.

    Or measure the scores that any program saved of the split's rows (--scores), with every metric and by label frequency.
    """
    from training.cli import check_outputs

    check_outputs({"--json": output, "--scores-out": scores_out})
    _check_report(pages, baseline, split)
    chosen = engine_of(engine, workers, address)
    if bundle is None:
        if scores is None or folder is None or scores_out is not None or index is not None or engine != "local":
            raise click.UsageError(
                "a BUNDLE is needed, or --scores FILE and --data DIR without --index, --scores-out and --engine"
            )
        _evaluate_scores(scores, folder, split, propensity, output, pages, baseline)
        return
    if scores is not None or propensity is not None:
        raise click.UsageError("--scores and --propensity go without a BUNDLE, which has its own")
    _evaluate_bundle(bundle, folder, split, index, output, scores_out, pages, baseline, chosen)


def _evaluate_bundle(
    bundle: Path,
    folder: Path | None,
    split: str,
    index: str | None,
    output: Path | None,
    scores_out: Path | None,
    pages: Path | None,
    baseline: str | None,
    engine: Engine,
) -> None:
    """Measure a bundle; where the data and the index are its own, the figures are kept as those of its run."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    from data import open_format
    from data.scores import write_scores
    from index.retriever import Retriever
    from training import evaluation_report
    from training.cli import write_output, write_report
    from training.evaluate import BATCH
    from training.evaluate import evaluate as measure
    from training.record import answers_of, evaluated
    from training.scores import Judge

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    retriever = Retriever.open(bundle, index)
    facts = retriever.bundle.manifest.data
    files = open_format(folder or Path(facts.path), "auto" if folder else facts.format)
    rows = files.read(split)
    served = retriever.index.describe()
    console.print(f"index: {escape(', '.join(f'{key} {value}' for key, value in served.items()))}")
    steps = iter(track(range(0, len(rows), BATCH), f"evaluating {escape(split)}", console=console, transient=True))

    def report(done: int) -> None:
        next(steps, None)

    labels = files.labels()
    own = folder is None and index is None  # the figures of the run itself, which keeps the answers
    keep = own or scores_out is not None or pages is not None
    asked = pages is not None
    result = measure(retriever, labels, rows, facts.propensity, report, engine, index=index, keep=keep, probabilities=asked)
    for _ in steps:
        continue
    _show(f"{bundle} on {split} ({len(rows):,} rows, {len(retriever.labels):,} labels)", result.figures)
    if result.calibration is not None:
        Console(highlight=False).print(_calibration_table(result.calibration))
    per_query = 1000 * result.seconds["total"] / len(rows)
    console.print(f"{result.seconds['total']:.2f} s, {per_query:.2f} ms a query in batches of {BATCH}")
    if output is not None:
        write_output(output, json.dumps(result.as_json(), indent=1) + "\n")
    if scores_out is not None:
        write_scores(scores_out, result.ranked, result.scores, rows.positives.num_labels)
    if pages is not None:
        judge = Judge(labels, rows, result.counts, result.weights, facts.propensity, str(folder or facts.path))
        answers = evaluation_report.Answers.of_bundle(retriever, result)
        written = evaluation_report.write(pages, judge, split, answers, baseline)
        console.print(f"report: {escape(str(written))}")
    if own:
        out = evaluated(retriever.store.root, retriever.bundle.manifest.training.fingerprint, split, result.as_json())
        if out is not None:
            write_scores(answers_of(out, split), result.ranked, result.scores, rows.positives.num_labels)
            write_report(out, console)


def _show(title: str, figures: Mapping[str, float]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title))
    for name in figures:
        table.add_column(name, justify="right")
    table.add_row(*[f"{value:.2f}" for value in figures.values()])
    Console(highlight=False).print(table)


def _calibration_table(figures: dict[str, dict[str, float]]) -> Table:
    """Return the figures of the probabilities, before and after calibration."""
    from rich.table import Table

    table = Table(title="probabilities: the softmax over all labels, at the fitted temperature, and calibrated")
    for column in ("", *next(iter(figures.values()))):
        table.add_column(column, justify="right" if column else "left")
    for way, of_way in figures.items():
        table.add_row(way, *(f"{value:.4f}" for value in of_way.values()))
    return table


def _check_report(pages: Path | None, baseline: str | None, split: str) -> None:
    """Raise an error for a report or a baseline that cannot be, before the work."""
    if pages is None:
        if baseline is not None:
            raise click.UsageError("--baseline goes with --report")
        return
    from training import evaluation_report
    from training.scores import files_of

    evaluation_report.check(pages)
    if baseline is not None:
        files_of(baseline, split)


def _evaluate_scores(
    scores: Path,
    folder: Path,
    split: str,
    propensity: str | None,
    output: Path | None,
    pages: Path | None,
    baseline: str | None,
) -> None:
    """Measure a score file; no bundle is opened."""
    from rich.console import Console

    from training import evaluation_report
    from training.cli import write_output
    from training.scores import Judge, propensity_of, report

    judge = Judge.of(folder, split, propensity_of(propensity))
    tally = judge.tally(scores)
    report(scores, split, judge, tally, Console(highlight=False))
    if judge.counts is None:
        click.echo(f"note: {folder} has no training rows: no propensities, no frequencies", err=True)
    if output is not None:
        write_output(output, json.dumps(judge.as_json(tally), indent=1) + "\n")
    if pages is not None:
        answers = evaluation_report.Answers(scores.name, *judge.answers(scores, evaluation_report.DEPTH))
        click.echo(f"report: {evaluation_report.write(pages, judge, split, answers, baseline)}", err=True)
