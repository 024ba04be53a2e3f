"""`dexml tune`: settings of a training, and of a search, found by evaluating some of a grid."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from training.run import Progress
    from training.tuning.study import Evaluation, Study

EPILOG_TRAIN = """Examples:

\b
  dexml tune train training/configs/cpu.toml tuned --set data.path=DATA --space loss.temperature=0.03,0.04,0.06,0.08,0.12 \\
    --space training.rate_scale=0.5,1,2 --trials 12
  dexml tune train mine.toml tuned --space space.toml --objective P@1 --objective memory --sampler tpe
  dexml train tuned/best.toml
"""
EPILOG_SEARCH = """Examples:

\b
  dexml tune search runs/mine tuned                          the least cost that finds 99% of what an exact search finds
  dexml tune search runs/mine tuned --keep                   and the bundle answers so from now on
  dexml tune search runs/mine tuned --space nprobe=1,2,4,8,16 --space candidates=10,20,50,100 --objective latency --bound P@1=80
  dexml tune search runs/mine tuned --space 'factory="IVF256,Flat","IVF256,SQ8"' --space nprobe=1,2,4,8,16
"""


@click.group()
def tune() -> None:
    """Find settings that answer best, by tabu search, TPE or at random over a grid.

    After a Ctrl-C or a kill the same command goes on with what OUT holds, and to the same end.
    """


def options(figures: str) -> Callable[[Any], Any]:
    """Add the options that both kinds of tuning have."""
    given = [
        click.argument("out", type=click.Path(path_type=Path)),
        click.option("--space", multiple=True, metavar="KEY=V,V,…", help="Values of a key; or a TOML file with lists."),
        click.option("--objective", "objectives", multiple=True, metavar="FIGURE", help=f"What is tuned for: {figures}."),
        click.option(
            "--bound", "bounds", multiple=True, metavar="FIGURE=X", help="At least X (P@k, recall), at most X (others)."
        ),
        click.option(
            "--sampler", type=click.Choice(("tabu", "tpe", "random")), help="Default: tabu; tpe for several objectives."
        ),
        click.option("--trials", type=click.IntRange(min=1), help="Points to evaluate in all."),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
        click.option("--choose", type=click.IntRange(min=1), metavar="N", help="Take evaluation N, and not the best."),
    ]

    def add(command: Any) -> Any:
        for option in reversed(given):
            command = option(command)
        return command

    return add


@tune.command(epilog=EPILOG_TRAIN)
@click.argument("config", type=click.Path(path_type=Path))
@options("P@1 (default), P@3, P@5, seconds, latency, memory")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one setting of the config for all.")
@click.option("--no-pruning", is_flag=True, help="Train all to their end, also those below the median.")
def train(
    config: Path,
    out: Path,
    space: tuple[str, ...],
    objectives: tuple[str, ...],
    bounds: tuple[str, ...],
    sampler: str | None,
    trials: int | None,
    seed: int,
    choose: int | None,
    settings: tuple[str, ...],
    no_pruning: bool,
) -> None:
    """Try settings of the training CONFIG on training rows held out; OUT/best.toml is the config that did best.

    Each is trained on the other rows and judged on these, without a refit or a bundle: `dexml train OUT/best.toml` makes that.
    """
    from rich.console import Console

    from data import open_format
    from data.progress import reading
    from dexml.errors import InputError
    from training.interrupts import interruptible
    from training.record import write_text
    from training.tuning import goals
    from training.tuning.space import Space
    from training.tuning.study import Study, locked
    from training.tuning.toml import toml
    from training.tuning.trainings import Trainings

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    aims = goals.Goals.of(objectives or ("P@1",), bounds, goals.TRAINING)
    grid = Space.of(space)
    if not grid.axes:
        raise InputError("--space: say what to search, such as --space loss.temperature=0.03,0.06,0.12")
    trainings = Trainings(config, settings, out)
    trainings.check(grid)
    data = trainings.config.data
    with locked(out), interruptible() as interrupted:
        with reading(console) as tell:
            files = open_format(data.path, data.format, tell)
            trainings.read(files.labels(), files.read("train"))
        about = {"what": "train", "config": trainings.values, "rows": len(trainings.split), "labels": len(trainings.labels)}
        start = grid.place(trainings.present(grid))
        study = Study(out, grid, aims, about, sampler=sampler or _sampler(aims), seed=seed, start=start, pruned=not no_pruning)
        with _shown(console, study, trials) as (report, told):
            trainings.told, trainings.interrupted = told, interrupted
            finished = study.go(trainings, _most(study, trials), interrupted, report)
        chosen = _chosen(study, choose)
        if chosen is not None:
            write_text(out / "best.toml", f"# dexml tune: {study.goals}\n{toml(trainings.best(chosen.settings))}")
        _end(console, out, study, f"Tuning of {config}", chosen, finished)
    click.echo(f"dexml train {out / 'best.toml'}")


@tune.command(epilog=EPILOG_SEARCH)
@click.argument("bundle", type=click.Path(path_type=Path))
@options("cost (default, with --bound recall=0.99), recall, P@1, P@3, P@5, latency, memory")
@click.option("--data", "folder", type=click.Path(path_type=Path), help="The data set; default: the one that the bundle names.")
@click.option("--fit", metavar="SPLIT", help="Ask the rows of this split; default: training rows that were held out.")
@click.option("--top-k", type=click.IntRange(min=1), default=10, show_default=True, help="Labels asked for.")
@click.option("--keep", is_flag=True, help="Publish the bundle with what was found.")
def search(
    bundle: Path,
    out: Path,
    space: tuple[str, ...],
    objectives: tuple[str, ...],
    bounds: tuple[str, ...],
    sampler: str | None,
    trials: int | None,
    seed: int,
    choose: int | None,
    folder: Path | None,
    fit: str | None,
    top_k: int,
    keep: bool,
) -> None:
    """Try settings of BUNDLE's index (nprobe, ef_search, k_factor, factory, …) and how many candidates are rescored.

    Recall is the share of what an exact search answers; cost counts the rows that a query is compared with, which is the same
    on every machine; latency is in batches of 32. OUT/best.toml has the sections for a config.
    """
    from rich.console import Console

    from data import open_format
    from dexml.bundle import Bundle
    from dexml.errors import InputError
    from training.interrupts import interruptible
    from training.record import write_text
    from training.tuning import goals, searching
    from training.tuning.space import Space
    from training.tuning.study import Study, locked
    from training.tuning.toml import toml

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    aims = goals.Goals.of(objectives or ("cost",), bounds if objectives or bounds else ("recall=0.99",), goals.SEARCH)
    opened = Bundle.open(bundle)
    facts = opened.manifest.data
    with locked(out), interruptible() as interrupted:
        with console.status("encoding queries"):
            files = open_format(folder or Path(facts.path), "auto" if folder else facts.format)
            searches = searching.Searches(bundle, searching.watched_rows(opened, files, fit), top_k)
        grid = Space.of(space) if space else searches.usual()
        searches.check(grid)
        about = {"what": "search", "bundle": opened.manifest.sha256, "queries": len(searches.queries), "top_k": searches.top_k}
        start = grid.place(searches.present)
        study = Study(out, grid, aims, about, sampler=sampler or _sampler(aims), seed=seed, start=start)
        with _shown(console, study, trials) as (report, _):
            finished = study.go(searches, _most(study, trials), interrupted, report)
        chosen = _chosen(study, choose)
        if chosen is not None:
            row, rerank = searches.rows(chosen.settings)
            sections = {"index": row.model_dump(), "rerank": rerank.model_dump()}
            write_text(out / "best.toml", f"# dexml tune: {study.goals}{toml(sections)}")
        _end(console, out, study, f"Search of {bundle}", chosen, finished)
        if keep:
            if chosen is None or not study.goals.kept(chosen.figures):
                raise InputError(f"--keep: nothing evaluated is within the bounds ({study.goals})")
            click.echo(f"published as {searching.keep(bundle, searches, chosen.settings).name}")


def _sampler(aims: Any) -> str:
    return "tabu" if len(aims.objectives) == 1 else "tpe"


def _most(study: Study, trials: int | None) -> int:
    """Return how many points to evaluate: a tenth of a large grid, at least 30 and at most 200, where nobody says."""
    return trials or min(max(30, len(study.space) // 10), 200)


def _chosen(study: Study, number: int | None) -> Evaluation | None:
    from dexml.errors import InputError

    if number is None:
        return study.best()
    found = [one for one in study.evaluations() if one.number == number and one.state == "complete"]
    if not found:
        raise InputError(f"--choose: there is no complete evaluation {number}")
    return found[0]


@contextmanager
def _shown(
    console: Console, study: Study, trials: int | None
) -> Iterator[tuple[Callable[[Evaluation], None], Callable[[Progress], None]]]:
    """Show a bar, and a line for each evaluation; what is yielded takes evaluations, and a training's progress."""
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from training.tuning.report import line

    most, known = min(_most(study, trials), len(study.space)), len(study.evaluations())
    if known:
        console.print(f"going on after {known} evaluations")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("evaluating", total=most, completed=known)

        def report(one: Evaluation) -> None:
            best = study.best()
            star = "[bold]*[/]" if best is not None and best.number == one.number else " "
            console.print(f"{star} {one.number}/{most} {escape(line(one, study.goals))}")
            bar.update(task, completed=one.number, description="evaluating")

        def told(now: Progress) -> None:
            bar.update(task, description=f"epoch {now.epoch}/{now.epochs} · loss {now.loss:.3f}")

        yield report, told


def _end(console: Console, out: Path, study: Study, title: str, chosen: Evaluation | None, finished: bool) -> None:
    """Write the report and say what was found; exit with 130 where it was interrupted."""
    from rich.markup import escape

    from dexml.errors import InputError
    from training.tuning.goals import told
    from training.tuning.report import line, write
    from training.tuning.space import words

    evaluations = study.evaluations()
    path = write(out, study, title, chosen)
    if chosen is None and finished:
        refused = next((one.why for one in evaluations if one.why), "")
        raise InputError(f"tune: no evaluation came to its end{': ' + refused if refused else ''}")
    if chosen is not None:
        outside = "" if study.goals.kept(chosen.figures) else "; nothing evaluated is within the bounds"
        click.echo(f"{words(chosen.settings)}: {told(chosen.figures)}{outside}")
        if len(study.goals.objectives) > 1:
            for one in study.front():
                click.echo(f"not beaten: {one.number} {line(one, study.goals)}")
        click.echo(f"{len(evaluations):,} of {len(study.space):,} points evaluated; {out / 'best.toml'}, {path}")
    if not finished:
        console.print(f"stopped after {len(evaluations):,} evaluations; the same command goes on: {escape(str(out))}")
        raise SystemExit(130)
