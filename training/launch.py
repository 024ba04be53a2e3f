"""`dexml train --engine ray`: the ranks that torchrun would start, started by Ray Train, and again when one is lost.

Each rank runs the same command as under torchrun. What Ray Train adds is that it notices a lost process or node, ends the
other ranks, and starts all of them anew, which go on from the last complete checkpoint in OUT.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import click

from dexml.config import load
from dexml.errors import InputError
from training import checkpoint
from training.config import Config, check
from training.engines.session import session
from training.follow import check_ranks
from training.world import RankLost, backend

RESTARTS = 3
SCRATCH = ".ray"  # in OUT, where Ray Train keeps its own notes while it runs, and what the first rank says stands
LOG = "first_rank.log"
EVERY_SECONDS = 0.2


def launch(
    config: Path, settings: Sequence[str], resume: bool, if_needed: bool, workers: int | None, address: str | None
) -> None:
    """Train as CONFIG says over `workers` ranks, a processor (or GPU) each, and start them again up to RESTARTS times.

    Config, data and `out` must be the same folders on all nodes. Raises InputError for what is wrong with the config, before
    Ray is started, for what a rank says, and when ranks have been lost more often than that. Ctrl-C ends the ranks at once.
    """
    read = load(Config, config, settings)
    check(read)
    if not read.data.path.is_dir():
        raise InputError(f"data: the folder {read.data.path} does not exist")
    out = read.out.absolute()
    if resume and checkpoint.last(out) is None:
        raise InputError(f"--resume: {checkpoint.folder(out)} holds no checkpoint")
    words = [word for setting in settings for word in ("--set", setting)] + ["--if-needed"] * if_needed
    given = {"folder": str(Path.cwd()), "out": str(out), "words": ["train", str(config.absolute()), *words]}
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    with session(workers, address) as (_, count):
        check_ranks(read, count)
        if not resume:
            checkpoint.clear(out)  # what is there at a rank's start is then this run's, and it goes on from there
        try:
            with _shown(out / SCRATCH / LOG):
                said = _fit(given, count, int(read.training.timeout_seconds), out / SCRATCH)
        except KeyboardInterrupt:
            raise InputError(f"stopped; {checkpoint.last_good(out)}; --resume goes on") from None
        finally:
            shutil.rmtree(out / SCRATCH, ignore_errors=True)
    if said is not None:
        raise InputError(said)


def _fit(given: dict[str, Any], ranks: int, timeout_seconds: int, scratch: Path) -> str | None:
    """Run the ranks; return what the first one complained of, or None."""
    import torch
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    trainer = TorchTrainer(
        _rank,
        train_loop_config=given,
        torch_config=TorchConfig(backend=backend(), timeout_s=timeout_seconds),
        scaling_config=ScalingConfig(num_workers=ranks, use_gpu=torch.cuda.is_available()),
        run_config=RunConfig(name="run", storage_path=str(scratch), failure_config=FailureConfig(max_failures=RESTARTS)),
    )
    try:
        said = trainer.fit().return_value
    except TrainingFailedError as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        raise InputError(
            f"training: ranks were lost, and all started anew, {RESTARTS} times ({lines[-1].strip()}); "
            f"{checkpoint.last_good(Path(given['out']))}; --resume goes on"
        ) from None
    assert said is None or isinstance(said, str)
    return said


def _rank(given: dict[str, Any]) -> str | None:
    """Do what one rank does; return what is wrong with what the user gave, or None. Raises RankLost: that is tried again."""
    from dexml.__main__ import command

    os.chdir(given["folder"])
    out = Path(given["out"])
    going = checkpoint.last(out) is not None
    log = out / SCRATCH / LOG if os.environ["RANK"] == "0" else os.devnull
    try:
        with open(log, "a", encoding="utf-8", buffering=1) as stream, redirect_stderr(stream):
            command.main(args=[*given["words"], *["--resume"] * going], prog_name="dexml", standalone_mode=False)
    except RankLost:
        raise
    except InputError as error:
        return str(error)
    return None


@contextmanager
def _shown(log: Path) -> Iterator[None]:
    """Print what is appended to a file while the block runs: what the first rank says, on whatever node it is."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
    except OSError as error:
        raise InputError(f"out: {log.parent} cannot be written: {error.strerror}") from None
    ended = threading.Event()

    def follow() -> None:
        with log.open(encoding="utf-8") as lines:
            while True:
                last = ended.wait(EVERY_SECONDS)
                if text := lines.read():
                    click.echo(text, err=True, nl=False)
                if last:
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
