"""What ranks other than the first do in a training: the same steps, without a word and without a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dexml.errors import InputError
from dexml.types import Int64Array, LabelTable, Split
from training import checkpoint, memory
from training.calibration import judge
from training.config import Config
from training.run import Progress, Run
from training.world import World
from training.world import join as join_ranks


def join(config: Config) -> World:
    """Return the world that this process was started in. Raises InputError for a config that several ranks cannot train."""
    world = join_ranks(config.training.timeout_seconds)
    check_ranks(config, world.size)
    return world


def check_ranks(config: Config, size: int) -> None:
    """Raise InputError for a config that `size` ranks cannot train."""
    if size > 1 and config.finetune.train != "none":
        raise InputError(
            f"finetune.train: {config.finetune.train!r} runs in one process; over {size} ranks features of a frozen encoder "
            "are trained (finetune.train = 'none')"
        )


def follow(
    config: Config,
    labels: LabelTable,
    phases: Sequence[tuple[Split, Split | None, Int64Array]],
    resume: bool,
    interrupted: Callable[[], bool],
    world: World,
) -> None:
    """Take part in every phase's steps, checkpoints and embeddings, as the first rank goes through them.

    Raises InputError where this rank sees another checkpoint than the first (`out` must be one folder for all).
    """
    state = checkpoint.newest(config.out) if resume else None
    for phase, (rows, validation, numbers) in enumerate(phases, 1):
        if state is not None and state.facts["phase"] != phase and phase < len(phases):
            continue
        run = Run(config, labels, rows, validation, phase, numbers, world)
        if state is not None:
            if not run.knows(state):
                raise InputError(f"--resume: rank {world.rank} sees a checkpoint of another run in {config.out}")
            run.resume(state)
            state = None
        memory.settle(run)
        finished = run.go(_silent, interrupted)
        if finished and phase < len(phases):
            judge(run)
            continue
        if finished:
            run.save()
        run.embeddings()
        return


def _silent(progress: Progress) -> None: ...
