"""`dexml train` and `dexml evaluate`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from training.run import Progress, Run

EPILOG_TRAIN = """Examples:

\b
  dexml train training/configs/demo.toml
  dexml train training/configs/cpu.toml --set data.path=MY_DATA --set out=runs/mine
  dexml train training/configs/cpu.toml --set data.path=MY_DATA --set out=runs/mine --set loss.name=softmax
"""


@click.command(epilog=EPILOG_TRAIN)
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one setting of the config: section.key=value."
)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of this run.")
def train(config: Path, settings: tuple[str, ...], resume: bool) -> None:
    """Train a dual encoder as CONFIG (TOML) says; leaves a bundle in its `out` folder.

    Ctrl-C finishes the current step, leaves a checkpoint and a bundle of what was learned so far, and `--resume` goes on.
    """
    from rich.console import Console

    from data import open_format
    from dexml.config import load
    from dexml.errors import InputError
    from training import checkpoint
    from training.config import Config, check, settle
    from training.export import export
    from training.run import Run, hold_out

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    read = load(Config, config, settings)
    check(read)
    files = open_format(read.data.path, read.data.format)
    labels, split = files.labels(), files.read("train")
    settled, said = settle(read, len(split))
    console.print(f"[bold]{read.data.path}[/]: {len(split):,} training rows, {len(labels):,} labels")
    console.print(f"auto: {said}")
    start = time.monotonic()
    kept, watched = hold_out(settled, split)
    phases = [(kept, watched)]
    if watched is not None and settled.validation.refit:
        phases.append((split, None))
    state = checkpoint.newest(settled.out) if resume else None
    for number, (rows, validation) in enumerate(phases, 1):
        what = "watched on validation rows" if validation else "on all rows"
        console.print(f"[bold]training {number} of {len(phases)}[/], {what}" if len(phases) > 1 else "[bold]training[/]")
        with console.status("reading texts into features"):
            run = Run(settled, labels, rows, validation)
        if state is not None and not run.knows(state):
            if number < len(phases):
                continue  # the checkpoint may belong to the next phase
            raise InputError(f"--resume: {checkpoint.folder(settled.out)} was made with another config or other data")
        if state is not None:
            run.resume(state)
            state = None
            console.print(f"resumed at step {run.step} of {run.steps}")
        watched_rows = f", {len(validation):,} watched" if validation else ""
        console.print(
            f"{run.model.encoder.width():,} features, {len(run.seen):,} of {len(labels):,} labels have a training row, "
            f"{len(rows):,} rows trained on{watched_rows}"
        )
        with _interruptible(run):
            finished = _go(run, console)
            if not finished or number == len(phases):
                with console.status("embedding labels, building the index"):
                    root = export(run, split, finished=finished)
        if not finished:
            console.print(f"stopped at step {run.step} of {run.steps}; {root} answers with what was learned so far.")
            console.print("Go on with the same command and --resume.")
            raise SystemExit(130)
    checkpoint.clear(settled.out)
    console.print(f"[bold green]done[/] in {time.monotonic() - start:.1f} s: [bold]{root}[/]")


def _go(run: Run, console: Console) -> bool:
    """Train under a progress bar; each epoch leaves a line behind, also where there is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training", total=run.steps, completed=run.step)

        def report(now: Progress) -> None:
            watched = "" if now.precision_1 is None else f" · validation P@1 {now.precision_1:.1f} P@5 {now.precision_5:.1f}"
            line = f"epoch {now.epoch}/{now.epochs} · loss {now.loss:.4f}{watched}"
            bar.update(task, completed=now.step, description=line)
            if now.step * now.epochs % now.steps == 0:
                console.print(f"{line} · {now.seconds:.1f} s")

        return run.go(report)


@contextmanager
def _interruptible(run: Run) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM ask for a stop after the step; a second Ctrl-C stops at once."""

    def ask(number: int, frame: object) -> None:
        run.interrupt = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", "folder", type=click.Path(path_type=Path), help="The data set; default: the one it was trained on.")
@click.option("--split", default="test", show_default=True, help="Which split of it.")
@click.option("--index", help="Another index than the bundle's own: faiss or exact.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the figures, seconds and sizes to this file.")
def evaluate(bundle: Path, folder: Path | None, split: str, index: str | None, output: Path | None) -> None:
    """Measure BUNDLE on a split, through the same path that serves it; figures in percent."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from data import open_format
    from index.retriever import Retriever
    from training.evaluate import BATCH
    from training.evaluate import evaluate as measure

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    retriever = Retriever.open(bundle, index)
    facts = retriever.bundle.manifest["data"]
    files = open_format(folder or Path(facts["path"]), "auto" if folder else facts["format"])
    rows = files.read(split)
    steps = iter(track(range(0, len(rows), BATCH), f"evaluating {split}", console=console, transient=True))

    def report(done: int) -> None:
        next(steps, None)

    result = measure(retriever, rows, (facts["propensity"][0], facts["propensity"][1]), report)
    for _ in steps:
        continue
    table = Table(title=f"{bundle} on {split} ({len(rows):,} rows, {len(retriever.labels):,} labels)")
    for name in result.figures:
        table.add_column(name, justify="right")
    table.add_row(*[f"{value:.2f}" for value in result.figures.values()])
    Console(highlight=False).print(table)
    per_query = 1000 * result.seconds["total"] / len(rows)
    console.print(f"{result.seconds['total']:.2f} s, {per_query:.2f} ms a query in batches of {BATCH}")
    if output is not None:
        scratch = output.with_name(f"{output.name}.{os.getpid()}.tmp")
        scratch.write_text(json.dumps(result.as_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, output)
