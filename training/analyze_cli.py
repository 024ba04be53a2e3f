"""`dexml analyze`: what a run's gradients and a data set's labels look like, in figures and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from dexml.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from data.format import Format
    from dexml.types import Split
    from index.retriever import Retriever
    from training.analysis.ntk_report import Table

EPILOG_NTK = """Examples:

\b
  dexml analyze ntk runs/mine --report ntk.html
  dexml analyze ntk runs/mine --rows 2000 --directions 4 --json ntk.json
"""
EPILOG_LABELS = """Examples:

\b
  dexml analyze labels DATA --report labels.html --graphml labels.graphml
  dexml analyze labels runs/mine --labels 100 --scores              what depends on what beyond the text
  dexml train training/configs/finetune.toml --set finetune.negatives=graph --set finetune.graph=labels.graphml
"""
SHOWN = 12  # edges on the terminal


@click.group()
def analyze() -> None:
    """Look into a run or a data set: the tangent kernel of its queries, a graph of its labels. Nothing is changed."""


@analyze.command(epilog=EPILOG_NTK)
@click.argument("bundle", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--data", "folder", type=click.Path(path_type=Path), help="The data set; default: the one that the bundle names.")
@click.option(
    "--rows", default=500, show_default=True, type=click.IntRange(2, 2000), help="Training rows of the empirical kernels."
)
@click.option("--directions", default=8, show_default=True, type=click.IntRange(min=1), help="Scores that are differentiated.")
@click.option(
    "--along",
    default="labels",
    show_default=True,
    type=click.Choice(("labels", "random")),
    help="Scores of labels drawn at random, or of random directions.",
)
@click.option("--split", default="test", show_default=True, help="Where kernel ridge regression and the run are compared.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of rows and directions.")
@click.option("--report", "page", type=click.Path(path_type=Path), help="Write a page with pictures to this file.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write everything to this file.")
def ntk(
    bundle: Path,
    folder: Path | None,
    rows: int,
    directions: int,
    along: Literal["labels", "random"],
    split: str,
    seed: int,
    page: Path | None,
    output: Path | None,
) -> None:
    """The neural tangent kernel of RUN's query side on training rows: spectrum, effective rank, which labels are learned first.

    Before and after training, over frozen features; beside it kernels of infinitely wide networks, and kernel ridge regression
    by these against the run itself, on test rows.
    """
    from rich.console import Console
    from rich.markup import escape

    from training.analysis import ntk_report as report
    from training.analysis.ntk import MOST_ROWS, Asked, measure
    from training.cli import check_outputs, write_output
    from training.evaluate import evaluate

    check_outputs({"--json": output, "--report": page})
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with console.status("reading") as status:
        retriever, files = _opened(bundle, folder)
        labels, manifest = files.labels(), retriever.bundle.manifest
        train, test = files.read("train"), _first(files, split, MOST_ROWS)
        asked = Asked(rows, directions, along, seed)
        found = measure(retriever.model, _label_rows(retriever, files), train, test, asked, status.update)
        status.update("asking the run")
        evaluated = evaluate(retriever, labels, test, manifest.data.propensity, lambda done: None, keep=False)
    run = [evaluated.figures[f"P@{k}"] for k in (1, 3, 5)]
    shown = Console(highlight=False, soft_wrap=True)
    _table(shown, f"kernels of {len(found.rows)} training rows", report.of_kernels(found))
    shown.print(report.moved(found))
    assert found.learning is not None
    _table(shown, "learned first", report.of_labels(found.learning, labels, last=False))
    _table(shown, "learned last", report.of_labels(found.learning, labels, last=True))
    _table(shown, f"P@k on {len(test)} rows of {split}", report.of_ridges(found, run, manifest.data.train_rows))
    facts = {
        "run": retriever.bundle.name,
        "data": str(files.root),
        "rows": len(found.rows),
        "directions": f"{directions} {along}",
        "trained parameters": found.parameters,
        "seed": seed,
    }
    if output is not None:
        write_output(output, json.dumps(report.document(found, labels, run, facts), ensure_ascii=False) + "\n")
    if page is not None:
        status_line = f"{len(found.rows):,} training rows, {found.tested:,} rows of {split}, {len(labels):,} labels"
        write_output(page, report.html(manifest.name, status_line, found, labels, run, manifest.data.train_rows, facts))
        console.print(f"report: {escape(str(page))}")


@analyze.command(epilog=EPILOG_LABELS)
@click.argument("place", metavar="RUN_OR_DATA", type=click.Path(path_type=Path))
@click.option(
    "--data", "folder", type=click.Path(path_type=Path), help="The data set of a run; default: the one that it names."
)
@click.option("--split", default="train", show_default=True, help="Whose rows.")
@click.option(
    "--labels", "count", default=50, show_default=True, type=click.IntRange(2, 400), help="So many most frequent ones."
)
@click.option("--loss", default="squared", show_default=True, type=click.Choice(("squared", "logistic")))
@click.option("--scores", is_flag=True, help="Take away what the run's own score of a label says; needs a RUN.")
@click.option(
    "--threshold", type=click.FloatRange(min=0), help="Edges of a smaller |weight| are left out; default: 0.3, log-odds of 1."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the rows, where not all are read.")
@click.option("--graphml", "graph", type=click.Path(path_type=Path), help="Write the graph to this file.")
@click.option("--report", "page", type=click.Path(path_type=Path), help="Write a page with a picture to this file.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write everything to this file.")
def labels(
    place: Path,
    folder: Path | None,
    split: str,
    count: int,
    loss: Literal["squared", "logistic"],
    scores: bool,
    threshold: float | None,
    seed: int,
    graph: Path | None,
    page: Path | None,
    output: Path | None,
) -> None:
    """A directed acyclic graph of the most frequent labels of RUN_OR_DATA: which depend on which, from the rows they share.

    By TOPO: each label is regressed on those before it, in the order that no swap of two labels betters. Ctrl-C ends the search
    with what it has.
    """
    from rich.console import Console
    from rich.markup import escape

    from training.analysis import label_graph_report as report
    from training.analysis.graphml import written
    from training.analysis.label_graph import Asked, chosen, drawn, find
    from training.cli import check_outputs, write_output
    from training.interrupts import interruptible

    asked = Asked(loss, threshold)
    check_outputs({"--graphml": graph, "--json": output, "--report": page})
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with console.status("reading") as status:
        name, files, retriever = _run_or_data(place, folder)
        if scores and retriever is None:
            raise InputError(f"--scores: {place} is no run, whose scores could be taken")
        table, read = files.labels(), files.read(split)
        rows = read.take(drawn(len(read), seed))
        own = chosen(rows.positives, count)
        given = None
        if scores and retriever is not None:
            status.update("scores of the run")
            queries = retriever.model.embed_queries(rows.texts)[0]
            given = (queries @ _label_rows(retriever, files)[own].T).double().numpy()
        with interruptible() as stopped:

            def told(what: str, rounds: int, value: float) -> bool:
                status.update(f"{what}: {rounds} rounds of swaps, loss {value:.6g}")
                return stopped()

            found = find(rows.positives, own, given, asked, told)
    shown = Console(highlight=False, soft_wrap=True)
    losses = found.search.losses
    said = f"{len(own)} labels, {len(rows):,} rows of {split}"
    _table(shown, f"{said}: the strongest of {len(found.edges)} edges", report.of_edges(found, table, SHOWN))
    shown.print(f"loss {losses[0]:.6g} to {losses[-1]:.6g} in {len(losses) - 1} rounds of swaps. {report.caveat(found)}")
    facts = {
        "of": name,
        "data": str(files.root),
        "split": split,
        "rows": len(rows),
        "labels": len(own),
        "loss": loss,
        "scores": scores,
        "threshold": asked.least,
        "seed": seed,
    }
    if graph is not None:
        numbers = own.tolist()
        ids, texts = ([of[number] for number in numbers] for of in (table.ids, table.texts))
        about = {key: str(value) for key, value in facts.items() if key not in ("rows", "labels")}
        write_output(graph, written(found.weights, ids, texts, found.counts.tolist(), about))
        console.print(f"graph: {escape(str(graph))}")
    if output is not None:
        write_output(output, json.dumps(report.document(found, table, facts), ensure_ascii=False) + "\n")
    if page is not None:
        write_output(page, report.html(name, said if found.finished else f"{said}; stopped", found, table, facts))
        console.print(f"report: {escape(str(page))}")
    if not found.finished:
        console.print("stopped: what is shown is what was found so far")
        raise SystemExit(130)


def _run_or_data(place: Path, folder: Path | None) -> tuple[str, Format, Retriever | None]:
    """Return the name, the data set and, of a run, the run itself."""
    from data import open_format
    from dexml import versions

    if any((at / versions.CURRENT).exists() for at in (place, place / "bundle")):
        retriever, files = _opened(place, folder)
        return retriever.bundle.manifest.name, files, retriever
    if folder is not None:
        raise InputError(f"--data: {place} is no run, which could have another data set")
    return place.resolve().name, open_format(place), None


def _opened(bundle: Path, folder: Path | None) -> tuple[Retriever, Format]:
    """Return a run that is searched exactly, and its data set."""
    from data import open_format
    from index.retriever import Retriever

    retriever = Retriever.open(bundle, "exact")
    facts = retriever.bundle.manifest.data
    return retriever, open_format(folder or Path(facts.path), "auto" if folder else facts.format)


def _first(files: Format, split: str, most: int) -> Split:
    """Return a split, or as many of its rows, drawn with the same seed each time."""
    import numpy as np

    rows = files.read(split)
    return rows if len(rows) <= most else rows.take(np.sort(np.random.default_rng(0).permutation(len(rows))[:most]))


def _label_rows(retriever: Retriever, files: Format) -> Tensor:
    """Return label rows (L, D) by the data set's numbers; 0 of a label that the bundle does not have."""
    import torch

    from training.evaluate import numbers_of

    labels, rows = files.labels(), retriever.bundle.embeddings
    numbers = torch.from_numpy(numbers_of(labels, retriever))[: len(rows)]
    found = torch.zeros(len(labels), rows.shape[1])
    found[numbers[numbers >= 0]] = rows[numbers >= 0]
    return found


def _table(console: Console, title: str, made: Table) -> None:
    from rich.markup import escape
    from rich.table import Table as Shown

    heads, rows = made
    table = Shown(title=title)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=number == 0)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
