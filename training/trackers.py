"""Experiment trackers through accelerate's interface: TensorBoard (files alone), Weights & Biases, MLflow."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dexml.errors import InputError

if TYPE_CHECKING:
    from training.run import Progress

log = logging.getLogger(__name__)

TRACKERS: Mapping[str, str] = {"tensorboard": "TensorBoardTracker", "wandb": "WandBTracker", "mlflow": "MLflowTracker"}
"""Name, which is also the package to install -> class in accelerate.tracking."""

FOLDER = "tensorboard"


def settle(asked: Sequence[str] | str) -> tuple[str, ...]:
    """Return the trackers to use: those asked for, or for "auto" TensorBoard where it is installed, which only writes files.

    Raises InputError for one that is not installed, before any work is done.
    """
    if isinstance(asked, str):
        return ("tensorboard",) if find_spec("tensorboard") is not None else ()
    for name in asked:
        if find_spec(name) is None:
            raise InputError(f"training.trackers: {name!r} needs the package {name}: pip install {name}")
    return tuple(dict.fromkeys(asked))


class Trackers:
    """The open trackers of one phase of a run; TensorBoard's files lie in OUT/tensorboard/phase_N.

    `settings` are the config as "section.key" -> value. A run that goes on after step `after` takes TensorBoard's later
    events back; W&B and MLflow get a new run.
    """

    def __init__(
        self,
        names: Sequence[str],
        out: Path,
        run: str,
        phase: int,
        settings: Mapping[str, Any],
        after: int = 0,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self._warn = warn
        self._open: list[Any] = []
        self._hook = threading.excepthook
        if not names:
            return
        module = importlib.import_module("accelerate.tracking")
        importlib.import_module("accelerate").PartialState()  # who the main process is; the trackers ask at every call
        kept = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in settings.items()}
        arguments: Mapping[str, Callable[[type], Any]] = {
            "tensorboard": lambda kind: kind(f"phase_{phase}", out / FOLDER, purge_step=after + 1 if after else None),
            "wandb": lambda kind: kind(run, name=f"{run} phase {phase}", dir=str(out)),
            "mlflow": lambda kind: kind(run, run_name=f"{run} phase {phase}"),
        }
        for name in names:
            try:
                tracker = arguments[name](getattr(module, TRACKERS[name]))
                tracker.start()
                # accelerate would write TensorBoard's settings as a run of its own beside this one, and again at each resume.
                if name == "tensorboard":
                    tracker.tracker.add_text("config", "".join(f"    {key} = {value}\n" for key, value in kept.items()))
                else:
                    tracker.store_init_configuration(kept)
            except Exception as error:  # whatever a foreign service raises
                self.close()
                reason = " ".join(str(error).split())[:200]
                raise InputError(f"training.trackers: {name} cannot start ({type(error).__name__}: {reason})") from error
            self._open.append(tracker)
        threading.excepthook = self._of_thread

    def write(self, now: Progress) -> None:
        """Log a step, and the validation after it."""
        if not self._open:
            return
        values = {
            "train/loss": now.loss,
            "train/learning rate": now.rate,
            "train/gradient norm": now.gradient_norm,
            "speed/queries per second": now.queries / max(now.step_seconds, 1e-9),
            "speed/label scores per second": now.scores / max(now.step_seconds, 1e-9),
        }
        values.update({f"collapsed/{number}": share for number, share in (now.collapsed or {}).items()})
        if now.validation_seconds is not None:
            figures = {1: now.precision_1, 3: now.precision_3, 5: now.precision_5}
            values.update({f"validation/P{k}": value for k, value in figures.items() if value is not None})
        for tracker in list(self._open):
            try:
                tracker.log(values, step=now.step)
            except Exception as error:  # it must not end hours of training
                self._warn(f"{tracker.name} stopped at step {now.step}: {error}")
                self._open.remove(tracker)
                with suppress(Exception):
                    tracker.finish()

    def close(self) -> None:
        """Close them, so that all that was logged is there."""
        for tracker in self._open:
            try:
                tracker.finish()
            except Exception as error:  # it must not hide why the training stopped
                self._warn(f"{tracker.name} could not be closed: {error}")
        self._open.clear()
        threading.excepthook = self._hook

    def _of_thread(self, failure: threading.ExceptHookArgs) -> None:
        """Say nothing of a thread that writes TensorBoard's files: the next step meets the same error, and it is a line."""
        if type(failure.thread).__module__.startswith("tensorboard."):
            return
        self._hook(failure)
