"""`dexml train`, and what commands share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from training.engine_options import engine_options, options_of

if TYPE_CHECKING:
    from rich.console import Console

    from dexml.types import Int64Array, LabelTable, Split
    from training.config import Config
    from training.run import Run
    from training.world import World

    Phase = tuple[Split, Split | None, Int64Array]  # rows to train on, rows to watch, and the former's numbers in the split

EPILOG_TRAIN = """Examples:

\b
  dexml train training/configs/demo.toml
  dexml train training/configs/cpu.toml --set data.path=MY_DATA --set out=runs/mine
  dexml train training/configs/cpu.toml --set data.path=MY_DATA --set out=runs/mine --set loss.name=softmax
  dexml train training/configs/cpu.toml --set data.path=MY_DATA --set out=runs/mine --engine ray --workers 4
"""


@click.command(epilog=EPILOG_TRAIN)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one setting: section.key=value.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of this run.")
@click.option("--if-needed", is_flag=True, help="Do nothing when `out` already holds what this call would make.")
@engine_options
def train(
    config: Path,
    settings: tuple[str, ...],
    resume: bool,
    if_needed: bool,
    engine: str,
    workers: int | None,
    address: str | None,
) -> None:
    """Train a dual encoder as CONFIG (TOML) says; leaves a bundle in its `out` folder.

    Ctrl-C finishes the current step, leaves a checkpoint and a bundle of what was learned so far, and `--resume` goes on.

    With --engine ray, Ray starts the ranks that torchrun would, and again from the last checkpoint when one is lost.
    """
    if options_of(engine, workers, address) or engine == "ray":
        from training.launch import launch

        launch(config, settings, resume, if_needed, workers, address)
        return
    from dexml.config import load
    from training.config import Config, check
    from training.run import Run

    read = load(Config, config, settings)
    check(read)
    train_as(read, resume, if_needed, Run)


def train_as(read: Config, resume: bool, if_needed: bool, make: Callable[..., Run]) -> None:
    """Train as a checked config says, each phase by the run that `make` gives, as `training.run.Run` is made."""
    import numpy as np
    from rich.console import Console
    from rich.markup import escape

    from data import open_format
    from data.progress import reading
    from dexml.errors import InputError
    from training.config import settle
    from training.follow import follow, join
    from training.interrupts import interruptible
    from training.run import hold_out_rows
    from training.trackers import settle as settle_trackers

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    world = join(read)
    click.get_current_context().call_on_close(world.close)
    console.quiet = not world.first
    trackers = settle_trackers(read.training.trackers)
    with reading(console) as tell:
        files = open_format(read.data.path, read.data.format, tell)
        labels, split = files.labels(), files.read("train")
    settled, said = settle(read, len(split), chain(split.texts, labels.texts))
    kept, watched = hold_out_rows(settled, split)
    phases: list[Phase] = [(split.take(kept), split.take(watched) if len(watched) else None, kept)]
    if len(watched) and settled.validation.refit:
        phases.append((split, None, np.arange(len(split))))
    if if_needed and _is_made(settled, labels, *phases[-1][:2]):
        console.print(f"{escape(str(settled.out))} is up to date")
        return
    try:
        settled.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: {settled.out} cannot be made: {error.strerror}") from None
    console.print(f"[bold]{escape(str(read.data.path))}[/]: {len(split):,} training rows, {len(labels):,} labels")
    console.print(f"auto: {escape(said)}")
    with interruptible() as interrupted:
        if not world.first:
            follow(settled, labels, phases, resume, interrupted, world)
            return
        _train_phases(settled, labels, split, phases, trackers, resume, console, interrupted, world, make)


def _is_made(config: Config, labels: LabelTable, train: Split, validation: Split | None) -> bool:
    """Return whether `out` holds an intact, finished bundle of this very run, behind the same index and reranker."""
    from dexml import manifest as manifest_of
    from dexml import versions
    from dexml.errors import InputError
    from training.config import MemorySection
    from training.identity import fingerprint

    try:
        folder, manifest = versions.current(versions.root_of(config.out))
        manifest_of.verify(folder, manifest)
    except InputError:
        return False
    memory = config.memory.model_dump(mode="json")
    behind = (config.index.name, config.index.options, config.rerank.name, config.rerank.options, memory)
    remembered = manifest.training.config.get("memory", MemorySection().model_dump(mode="json"))
    made = (manifest.index.name, manifest.index.options, manifest.rerank.name, manifest.rerank.options, remembered)
    known = manifest.training.fingerprint == fingerprint(config, labels, train, validation)
    return manifest.training.finished and known and behind == made


def _train_phases(
    config: Config,
    labels: LabelTable,
    split: Split,
    phases: list[Phase],
    trackers: tuple[str, ...],
    resume: bool,
    console: Console,
    interrupted: Callable[[], bool],
    world: World,
    make: Callable[..., Run],
) -> None:
    """Train on each phase's rows in turn and export the last one; an interrupt exports what there is and exits with 130."""
    from rich.markup import escape

    from dexml.errors import InputError
    from index import INDEXES
    from training import checkpoint, memory
    from training.calibration import Judged, judge
    from training.display import both, clock, shown
    from training.export import export
    from training.record import Record

    start = time.monotonic()
    state = checkpoint.newest(config.out) if resume else None
    if resume and state is None:
        raise InputError(f"--resume: {checkpoint.folder(config.out)} holds no checkpoint")
    record: Record | None = None
    stop_after: int | None = None
    judged = Judged(None, None)
    for phase, (rows, validation, numbers) in enumerate(phases, 1):
        if state is not None and state.facts["phase"] != phase and phase < len(phases):
            continue
        what = "watched on validation rows" if validation else "on all rows"
        console.print(f"[bold]training {phase} of {len(phases)}[/], {what}" if len(phases) > 1 else "[bold]training[/]")
        began = time.monotonic()
        with console.status("reading texts into features"):
            run = make(config, labels, rows, validation, phase, numbers, world)
        run.stop_after, run.weighed, run.calibration = stop_after, judged.weighed, judged.calibration
        read_in = time.monotonic() - began
        INDEXES.build(config.index.name, config.index.options).check(len(labels), run.model.dimension)
        after = None
        if state is not None:
            if not run.knows(state):
                made = checkpoint.folder(config.out)
                raise InputError(f"--resume: {made} was made with another config or other data: {run.difference(state)}")
            run.resume(state)
            state, after = None, (phase, run.step)
            console.print(f"resumed at step {run.step} of {run.steps}")
        _, needs = memory.settle(run)
        if record is None:
            if after is None:
                checkpoint.clear(config.out)
            record = Record(config, trackers, {"path": str(config.data.path), "rows": len(split), "labels": len(labels)}, after)
        watched_rows = f", {len(validation):,} watched" if validation else ""
        console.print(
            f"{run.method.describe()}, {len(run.seen):,} of {len(labels):,} labels have a training row, "
            f"{len(rows):,} rows trained on{watched_rows}"
        )
        console.print(f"memory: {needs}")
        record.spent("features", read_in)
        with record.told(run, needs, lambda text: console.print(f"note: {escape(text)}")) as kept, shown(run, console) as seen:
            finished = run.go(both(kept, seen), interrupted)
        if run.stopped_early:
            console.print(f"stopped early: nothing was gained after epoch {run.best_epoch}, whose weights are kept")
        if finished and phase < len(phases):
            stop_after = run.best_epoch if run.stopped_early else None
            judged = judge(run)
            del run  # two at a time are more than the forecast says
            continue
        if finished:
            run.save()  # whatever happens to the export, the training is not lost
        with console.status("embedding labels, building the index"), record.timed("export"):
            root, said = export(run, split, finished=finished)
        break
    assert record is not None
    record.finish(finished, run.fingerprint)
    console.print(escape(said))
    write_report(config.out, console)
    if not finished:
        console.print(f"stopped at step {run.step} of {run.steps}; {escape(str(root))} answers with what was learned so far.")
        console.print("Go on with the same command and --resume.")
        raise SystemExit(130)
    checkpoint.clear(config.out)
    console.print(f"[bold green]done[/] in {clock(time.monotonic() - start)}: [bold]{escape(str(root))}[/]")


def write_report(out: Path, console: Console) -> None:
    """Write the report of a run; the bundle is there in any case, so that a report that fails is a note and no error."""
    from rich.markup import escape

    from dexml.errors import InputError
    from training.report import write

    try:
        console.print(f"report: {escape(str(write(out)))}")
    except InputError as error:
        console.print(f"note: {escape(str(error))}")


def check_outputs(paths: Mapping[str, Path | None]) -> None:
    """Raise InputError when nothing can be written to a path that an option named, before the work that makes it."""
    for option, path in paths.items():
        if path is not None:
            check_output(path, option)


def check_output(path: Path, option: str = "--json") -> None:
    """Raise InputError when nothing can be written to `path`, before the work that makes it."""
    from dexml.errors import InputError

    if path.is_dir():
        raise InputError(f"{option}: {path} is a folder")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option}: the folder {path.absolute().parent} does not exist")


def write_output(path: Path, text: str) -> None:
    """Write a file whole, or write to what is there when it is no regular file, such as a pipe or a device."""
    from dexml.errors import InputError

    regular = path.is_file() or not path.exists()
    place = path.with_name(f".{path.name}.{os.getpid()}.tmp") if regular else path
    try:
        place.write_text(text, encoding="utf-8")
        if regular:
            os.replace(place, path)
    except OSError as error:
        if regular:
            place.unlink(missing_ok=True)
        raise InputError(f"--json: {path} cannot be written: {error.strerror or error}") from None
