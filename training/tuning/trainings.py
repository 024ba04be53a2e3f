"""The settings of a training, tried on one data set: each trains a model on the same rows, watched on the same others."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from dexml.config import override, read_toml, validate
from dexml.errors import InputError
from dexml.kernels import choose
from dexml.metrics import precision_at
from dexml.types import LabelTable, Split
from training import checkpoint, memory
from training.config import Config, check, settle
from training.run import Progress, Run, hold_out_rows
from training.tuning.goals import Figures
from training.tuning.space import Settings, Space
from training.tuning.study import Seen

FIXED = ("data", "examples", "name", "out", "seed", "validation")  # the rows that judge must be the same
BATCH = 32  # queries at a time, of the latency
ASKED = 256  # queries, of the latency


class Trainings:
    """Trainings of the config file at `path` with `settings`, kept in the folder OUT/running while they go on."""

    def __init__(self, path: Path, settings: Sequence[str], out: Path) -> None:
        self.path, self.out = path, out / "running"
        self.values = read_toml(path)
        for setting in settings:
            override(self.values, setting)
        self.config = validate(Config, self.values)
        check(self.config)
        self.told: Callable[[Progress], None] = lambda progress: None
        self.interrupted: Callable[[], bool] = lambda: False

    def check(self, space: Space) -> None:
        """Raise InputError for a key that no config has or that must stay, and for a value that cannot be."""
        for key, values in space.axes.items():
            if key.split(".")[0] in FIXED:
                raise InputError(f"--space: {key} must be the same in all trainings (as all of {', '.join(FIXED)})")
            for value in values:
                check(self._config({key: value}))

    def present(self, space: Space) -> dict[str, Any]:
        """Return what the config says, with its "auto" settled once the data is read, at the keys of `space`."""
        dumped: Any = self.config.model_dump(mode="json")
        found = {}
        for key in space.axes:
            place = dumped
            for part in key.split("."):
                place = place.get(part) if isinstance(place, dict) else None
            found[key] = place
        return found

    def read(self, labels: LabelTable, split: Split) -> None:
        """Take the data set's labels and training rows. Raises InputError where none are held out to be watched."""
        self.labels, self.split = labels, split
        self.config, _ = settle(self.config, len(split), chain(split.texts, labels.texts))
        self.kept, self.watched = hold_out_rows(self.config, split)
        if not len(self.watched):
            raise InputError("validation: no training row is held out to judge by; set validation.fraction")

    def __call__(self, settings: Settings, seen: Seen) -> Figures | None:
        """Return the figures of a training with `settings`, after its last or best epoch; None where it was interrupted.

        Interrupted, or killed, it leaves a checkpoint, where the same training goes on.
        """
        config, _ = settle(self._config(settings), len(self.split), chain(self.split.texts, self.labels.texts))
        torch.manual_seed(config.seed)
        began = time.perf_counter()
        train, watched = self.split.take(self.kept), self.split.take(self.watched)
        run = Run(config, self.labels, train, watched, 1, self.kept)
        memory.settle(run)
        state = checkpoint.newest(self.out)
        if state is not None and run.knows(state):
            run.resume(state)
        else:
            shutil.rmtree(self.out, ignore_errors=True)  # of a training that was refused or cut short
        self.out.mkdir(parents=True, exist_ok=True)

        def report(progress: Progress) -> None:
            self.told(progress)
            if progress.validation_seconds is not None and progress.precision_1 is not None:
                third, fifth = progress.precision_3 or 0.0, progress.precision_5 or 0.0
                seen(progress.epoch, {"P@1": progress.precision_1, "P@3": third, "P@5": fifth})

        if not run.go(report, self.interrupted):
            return None
        seconds = time.perf_counter() - began
        figures = {**_judged(run, watched), "seconds": seconds}
        shutil.rmtree(self.out, ignore_errors=True)
        return figures

    def best(self, settings: Settings) -> dict[str, Any]:
        """Return the config's values with `settings`."""
        return self._with(settings)

    def _config(self, settings: Settings) -> Config:
        return validate(Config, self._with({**settings, "out": str(self.out)}))

    def _with(self, settings: Settings) -> dict[str, Any]:
        values = _copied(self.values)
        for key, value in settings.items():
            *above, last = key.split(".")
            place = values
            for part in above:
                below = place.setdefault(part, {})
                if not isinstance(below, dict):
                    raise InputError(f"--space: {key}: {part!r} is a value, not a section")
                place = below
            place[last] = value
        return values


def _judged(run: Run, watched: Split) -> Figures:
    """Return P@1, P@3 and P@5 on the rows `watched`, and what a query takes: encoding, and an exact search."""
    rows, kernels = run.embeddings(quick=True), choose()
    prepared = kernels.prepare(rows, copy="none")
    k = min(5, len(rows))
    ranked = kernels.scan(run.query_rows(watched.texts), prepared, k, 1.0).ids.numpy()
    texts, start = watched.texts[:ASKED], time.perf_counter()
    for first in range(0, len(texts), BATCH):
        kernels.scan(run.model.embed_queries(texts[first : first + BATCH])[0], prepared, k, 1.0)
    latency = 1000 * (time.perf_counter() - start) / len(texts)
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in run.model.tower.parameters())
    figures = {f"P@{k}": float(precision_at(ranked, watched.positives, k)) for k in (1, 3, 5)}
    return {**figures, "latency": latency, "memory": (rows.nbytes + parameters) / 1e6}


def _copied(table: dict[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in table.items()}
