"""`dexml calibrate`: scores of a bundle that is there already, made probabilities."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from data.format import Format
    from dexml.bundle import Bundle
    from dexml.calibration import Calibration, Watched
    from dexml.types import Int64Array
    from training.config import Config
    from training.run import Run

EPILOG = """Examples:

\b
  dexml calibrate runs/mine                      on the rows that its training held out
  dexml calibrate runs/mine --fit validation     on a split that the model was not trained on
  dexml calibrate runs/mine --remove
"""
SHOWN = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # precisions whose thresholds are printed
MOST_ROWS = 5_000  # validation rows of a split that is named; more sharpen nothing
BINS = 10


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", "folder", type=click.Path(path_type=Path), help="The data set; default: the one that the bundle names.")
@click.option("--fit", "split", metavar="SPLIT", help="Fit on this split; default: on the rows that the training held out.")
@click.option("--remove", is_flag=True, help="Publish the bundle without a calibration.")
def calibrate(bundle: Path, folder: Path | None, split: str | None, remove: bool) -> None:
    """Fit how probable it is that a label of BUNDLE's answers is right, given its score, and keep that in the bundle.

    It is fitted on rows that the model was not trained on, and that its memory does not hold. Where a model was trained once
    more on all rows, its watched run is made again for that. `dexml train` does the same at its end.
    """
    from rich.console import Console

    from data import open_format
    from dexml.bundle import Bundle, extend
    from dexml.calibration import fit, forget
    from dexml.errors import InputError

    opened = Bundle.open(bundle)
    if remove:
        if opened.calibration is None:
            raise InputError(f"bundle: {opened.root} has no calibration")
        click.echo(f"no calibration is kept; the bundle is now {extend(bundle, forget).root.name}")
        return
    facts = opened.manifest.data
    files = open_format(folder or Path(facts.path), "auto" if folder else facts.format)
    with Console(stderr=True).status("reading") as status:
        watched = _watched(opened, files, split, status)
        status.update("fitting")
        fitted = fit(watched)
    extended = extend(bundle, fitted.write)
    _show(fitted, watched, Console(highlight=False, soft_wrap=True))
    click.echo(f"the bundle is now {extended.root.name}")


def _watched(opened: Bundle, files: Format, split: str | None, status: Status) -> Watched:
    """Return the bundle's answers to rows that it has not seen: of a split, or held out of the rows that it names."""
    import numpy as np
    import torch

    from dexml.errors import InputError
    from training.calibration import Path as Answering
    from training.calibration import watch
    from training.config import MemorySection
    from training.recall import remember
    from training.recall_cli import held_out, rows_of

    manifest = opened.manifest
    if split is not None:
        if split == "train" and (manifest.training.step > 0 or opened.memory is not None):
            raise InputError("--fit: the model, or its memory, holds the rows of train; name another split")
        rows = rows_of(files, split, opened.labels)
        rows = rows.take(np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).astype(np.int64)))
        path = Answering.over(opened.embeddings, opened.memory, manifest.memory, manifest.temperature)
        status.update("encoding queries")
        return watch(path, opened.model().embed_queries(rows.texts)[0], rows, manifest.temperature)
    config = _config(opened, files)
    if config is not None and config.validation.refit:
        return _watched_again(opened, files, config, status)
    rows = rows_of(files, "train", opened.labels)
    trained, held = held_out(rows) if config is None else _held_out(config, files)
    status.update("encoding queries")
    model = opened.model()
    memory = None
    if manifest.memory is not None:
        kept = rows.take(trained)
        section = MemorySection(queries=manifest.memory.queries)
        memory = remember(kept, model.embed_queries(kept.texts)[0], section, 0 if config is None else config.seed)
    path = Answering.over(opened.embeddings, memory, manifest.memory, manifest.temperature)
    watched = rows.take(held)
    queries = model.embed_queries(watched.texts)[0] if len(held) else torch.zeros(0, manifest.dimension)
    return watch(path, queries, watched, manifest.temperature)


def _config(opened: Bundle, files: Format) -> Config | None:
    """Return the config that the bundle was trained with, on the data set `files`; None where nothing was trained."""
    from pydantic import ValidationError

    from dexml.errors import InputError
    from training.config import Config

    facts = opened.manifest.training
    if facts.step == 0:
        return None
    data = {**facts.config.get("data", {}), "path": str(files.root)}
    try:
        return Config.model_validate({**facts.config, "data": data})
    except ValidationError:
        raise InputError(
            f"bundle: {opened.root} was trained by another dexml, whose config this one does not read; name a split (--fit)"
        ) from None


def _held_out(config: Config, files: Format) -> tuple[Int64Array, Int64Array]:
    """Return the numbers of the rows that were trained on and of those that were held out. Raises InputError without any."""
    from dexml.errors import InputError
    from training.run import hold_out_rows

    trained, held = hold_out_rows(config, files.read("train"))
    if len(held) == 0:
        raise InputError("calibration: the training held no rows out; name a split that it has not seen (--fit)")
    return trained, held


def _watched_again(opened: Bundle, files: Format, config: Config, status: Status) -> Watched:
    """Return the answers of the run that was watched before the refit, which is made anew."""
    from dexml.errors import InputError
    from training.calibration import Path as Answering
    from training.calibration import watch
    from training.config import MemorySection
    from training.recall import remember
    from training.run import Run

    labels, split, manifest = files.labels(), files.read("train"), opened.manifest
    if len(split) != manifest.data.train_rows:
        raise InputError(
            f"data: {len(split)} training rows in {files.root}, but the bundle was trained on {manifest.data.train_rows}"
        )
    trained, held = _held_out(config, files)
    with tempfile.TemporaryDirectory(prefix="dexml-calibrate-") as place:
        elsewhere = config.model_copy(update={"out": Path(place)})  # for its checkpoints
        run = Run(elsewhere, labels, split.take(trained), split.take(held), 1, trained)
        _go(run, status)
    memory = None
    if manifest.memory is not None:
        section = MemorySection(queries=manifest.memory.queries)
        memory = remember(run.train, run.query_rows(run.train.texts), section, config.seed)
    path = Answering.over(run.embeddings(quick=True), memory, manifest.memory, manifest.temperature)
    watched = split.take(held)
    return watch(path, run.query_rows(watched.texts), watched, manifest.temperature)


def _go(run: Run, status: Status) -> None:
    run.go(lambda seen: status.update(f"training the watched run again: step {seen.step} of {seen.steps}"))


def _show(fitted: Calibration, watched: Watched, console: Console) -> None:
    """Print the figures of each way, those of fitted curves on rows left out; the reliability, and the thresholds."""
    import numpy as np
    from rich.table import Table

    from dexml.metrics import adaptive_ece_at, brier_at, ece_at, log_loss_at, reliability

    there, hits = watched.there, watched.hits
    scores = np.where(there, watched.scores, 0.0)
    softmax = np.exp(scores / watched.temperature - watched.log_z[:, None])
    crossed = watched.crossed(fitted.share)
    ways = {
        "softmax over all labels, as trained": watched.softmax,
        f"softmax, temperature {fitted.temperature:.3f}": np.where(there, softmax, np.nan),
        "isotonic in the score": watched.crossed(0.0),
        "isotonic in the log-softmax": watched.crossed(1.0),
        f"isotonic, share {fitted.share:g} of the sum (kept)": crossed,
    }
    table = Table(title=f"{fitted.rows} rows, their first 5 answers; curves fitted on other rows than they are judged on")
    for name in ("", "ECE@5", "adaptive ECE@5", "Brier@5", "log loss@5"):
        table.add_column(name, justify="left" if not name else "right")
    for way, given in ways.items():
        table.add_row(way, *(f"{figure(5, given, hits):.4f}" for figure in (ece_at, adaptive_ece_at, brier_at, log_loss_at)))
    console.print(table)
    of_bins = reliability(5, crossed, hits, BINS)
    bins = Table(title="reliability of what is kept")
    for name in ("probability", "right", "answers"):
        bins.add_column(name, justify="right")
    for confidence, accuracy, count in zip(of_bins.confidence, of_bins.accuracy, of_bins.count, strict=True):
        bins.add_row(f"{confidence:.3f}", f"{accuracy:.3f}", f"{count:,}")
    console.print(bins)
    for precision in SHOWN:
        least = fitted.threshold(precision)
        if least is None:
            console.print(f"precision ≥ {precision:g}: out of reach; the highest is {fitted.highest:g}")
            continue
        answers = int((crossed >= least).sum())
        console.print(f"precision ≥ {precision:g}: probability ≥ {least:.3f}, {answers / fitted.rows:.2f} labels a row")
