"""A study: points are asked of a sampler, evaluated and kept, so that one that was killed goes on as if it had not been.

OUT/study.log   Optuna's journal, JSON lines: optuna-dashboard reads it too
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dexml.errors import InputError, StorageError
from training.tuning.goals import Figures, Goals
from training.tuning.space import Settings, Space
from training.tuning.walk import Place

try:
    import optuna
    from optuna.trial import FrozenTrial, TrialState
except ImportError:
    raise InputError("tune needs Optuna: pip install 'dexml[tune]'") from None

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

FILE = "study.log"
SAMPLERS = ("tabu", "tpe", "random")
AHEAD = 5  # evaluations before any is cut short, as Optuna has it
_NAME = "dexml"

Seen = Callable[[int, Figures], None]
"""Takes the figures after an epoch; raises optuna.TrialPruned where the evaluation is not worth going on with."""
Evaluate = Callable[[Settings, Seen], Figures | None]
"""Returns the figures of settings; None where it was interrupted. Raises InputError for settings that cannot be."""


@dataclass(frozen=True)
class Evaluation:
    """The `number`th evaluated point, counted from 1, with its figures: none where it was refused, and `why`."""

    number: int
    place: Place
    settings: Settings
    figures: Figures
    state: Literal["complete", "pruned", "refused"]
    why: str = ""


class Study:
    """The study in OUT. `about` says what decides its figures: another one there is refused.

    `start` is the first point, where there is one; `pruned` says whether evaluations worse than the median may be cut short.
    """

    def __init__(
        self,
        out: Path,
        space: Space,
        goals: Goals,
        about: Mapping[str, Any],
        *,
        sampler: str = "tabu",
        seed: int = 0,
        start: Place | None = None,
        pruned: bool = False,
    ) -> None:
        self.space, self.goals, self.sampler, self.seed, self.start = space, goals, sampler, seed, start
        if sampler == "tabu" and len(goals.objectives) > 1:
            raise InputError("--sampler: tabu goes by one objective (the others as bounds); tpe and random take several")
        self.pruned = pruned and len(goals.objectives) == 1 and not goals.bounds and goals.objectives[0].startswith("P@")
        optuna.logging.set_verbosity(logging.ERROR)
        settled = {
            **about,
            "space": space.as_json(),
            "objectives": list(goals.objectives),
            "bounds": dict(goals.bounds),
            "sampler": sampler,
            "seed": seed,
            "pruned": self.pruned,
        }
        settled = json.loads(json.dumps(settled))
        self._study = _opened(out / FILE, goals.directions)
        kept = self._study.user_attrs.get("about")
        if kept is None:
            self._study.set_user_attr("about", settled)
        elif different := [key for key in settled if kept.get(key) != settled[key]]:
            key = different[0]
            raise InputError(
                f"{out}: was begun with {key} = {json.dumps(kept.get(key))}, and not {json.dumps(settled[key])}; "
                f"give a new folder, or remove this one"
            )

    def go(
        self,
        evaluate: Evaluate,
        most: int,
        interrupted: Callable[[], bool] = lambda: False,
        report: Callable[[Evaluation], None] = lambda evaluation: None,
    ) -> bool:
        """Evaluate until `most` points, or the whole grid, are known, and return True; False where it was interrupted.

        An evaluation that an interrupt, or a kill, cut off is made again when the study goes on.
        """
        try:
            return self._gone(evaluate, most, interrupted, report)
        except OSError as error:
            raise StorageError(f"tune: {error.filename or FILE} cannot be written: {error.strerror or error}") from None

    def _gone(
        self, evaluate: Evaluate, most: int, interrupted: Callable[[], bool], report: Callable[[Evaluation], None]
    ) -> bool:
        while len(self.evaluations()) < min(most, len(self.space)):
            if interrupted():
                return False
            trial = self._asked()
            place = self._place(trial.params)
            before = next((other for other in self._finished() if self._place(other.params) == place), None)
            if before is not None:
                self._repeat(trial, before)
            elif not self._evaluated(trial, self.space.settings(place), evaluate):
                return False
            else:
                report(self.evaluations()[-1])
        return True

    def evaluations(self) -> list[Evaluation]:
        """Return all evaluations in their order; points that the sampler asked for again are not among them."""
        states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "refused"}
        trials = [trial for trial in self._finished() if "again" not in trial.user_attrs]
        return [
            Evaluation(
                number,
                self._place(trial.params),
                self.space.settings(self._place(trial.params)),
                dict(trial.user_attrs.get("figures", {})),
                states[trial.state],  # type: ignore[arg-type]
                trial.user_attrs.get("why", ""),
            )
            for number, trial in enumerate(trials, 1)
        ]

    def best(self) -> Evaluation | None:
        """Return the complete evaluation that breaks least of the bounds and, among those, is best in the first objective."""
        made = [one for one in self.evaluations() if one.state == "complete"]
        return min(made, key=lambda one: self.goals.badness(one.figures), default=None)

    def front(self) -> list[Evaluation]:
        """Return the evaluations within the bounds that no other beats in all objectives, the best in the first one first."""
        made = [one for one in self.evaluations() if one.state == "complete" and self.goals.kept(one.figures)]
        beaten = [any(self.goals.dominated(one.figures, other.figures) for other in made) for one in made]
        left = [one for one, worse in zip(made, beaten, strict=True) if not worse]
        return sorted(left, key=lambda one: self.goals.badness(one.figures))

    def importance(self, figure: str) -> dict[str, float]:
        """Return how much of a figure's variance each key explains, by fANOVA; {} where too little is known to say."""
        completed = [trial for trial in self._finished() if trial.state == TrialState.COMPLETE]
        seen = {round(trial.user_attrs["figures"][figure], 12) for trial in completed}
        if len(completed) < 4 or len(seen) < 2:
            return {}
        given = optuna.importance.get_param_importances(
            self._study,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=self.seed),
            target=lambda trial: trial.user_attrs["figures"][figure],
        )
        return {key: float(given.get(key, 0.0)) for key in self.space.axes}

    def _finished(self) -> list[FrozenTrial]:
        found: list[FrozenTrial] = [t for t in self._study.get_trials(deepcopy=False) if t.state.is_finished()]
        return found

    def _place(self, params: Mapping[str, int]) -> Place:
        return tuple(int(params[key]) for key in self.space.axes)

    def _asked(self) -> optuna.Trial:
        """Return the next trial, with the parameters of a point. It depends on the seed and on finished trials alone."""
        finished = self._finished()
        self._study.sampler = self._made(len(finished))
        repeated = bool(finished) and "again" in finished[-1].user_attrs
        place: Place | None = self.start if not finished else None
        if repeated:  # a sampler that asks for what is known has no more to say: a point that is not known, at random
            random, known = np.random.default_rng((self.seed, len(finished))), {self._place(t.params) for t in finished}
            while place is None or place in known:
                place = tuple(random.integers(0, self.space.sizes).tolist())
        if place is not None and not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._study.enqueue_trial(dict(zip(self.space.axes, place, strict=True)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._study.ask(self.space.distributions())

    def _evaluated(self, trial: optuna.Trial, settings: Settings, evaluate: Evaluate) -> bool:
        def seen(epoch: int, figures: Figures) -> None:
            if self.pruned:
                trial.report(figures[self.goals.objectives[0]], epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned

        try:
            figures = evaluate(settings, seen)
        except optuna.TrialPruned:
            self._study.tell(trial, state=TrialState.PRUNED)
            return True
        except StorageError:
            raise
        except InputError as error:
            trial.set_user_attr("why", str(error))
            self._study.tell(trial, state=TrialState.FAIL)
            return True
        if figures is None:
            return False
        trial.set_user_attr("figures", figures)
        self._study.tell(trial, self.goals.values(figures))
        return True

    def _repeat(self, trial: optuna.Trial, before: FrozenTrial) -> None:
        """Tell a trial what is known of its point; it is no evaluation."""
        trial.set_user_attr("again", True)
        if before.state == TrialState.COMPLETE:
            trial.set_user_attr("figures", before.user_attrs["figures"])
            self._study.tell(trial, before.values)
        else:
            self._study.tell(trial, state=before.state)

    def _made(self, finished: int) -> BaseSampler:
        """Return the sampler for the next point, seeded by how many are finished: nothing of it need be kept."""
        broken = self._broken if self.goals.bounds else None
        if self.sampler == "tabu":
            from training.tuning.sampler import TabuSampler

            start = None if self.start is None else dict(zip(self.space.axes, self.start, strict=True))
            return TabuSampler(self.space.distributions(), start=start, seed=self.seed, constraints=broken)
        seed = int(np.random.SeedSequence((self.seed, finished)).generate_state(1)[0])
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=seed, constraints_func=broken)

    def _broken(self, trial: FrozenTrial) -> list[float]:
        return self.goals.broken(trial.user_attrs["figures"])


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make OUT and hold it for this process; mend what a killed one left. Raises InputError where another one has it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another process is tuning there") from None
        for left in out.glob(f"{FILE}.lock*"):  # Optuna's own, which it would wait half a minute for
            left.unlink()
        content = (out / FILE).read_bytes()
        os.ftruncate(handle, content.rfind(b"\n") + 1)  # a line that was cut off by a power cut
        yield
    finally:
        os.close(handle)


def _opened(path: Path, directions: list[str]) -> optuna.Study:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        pruner = optuna.pruners.MedianPruner(n_startup_trials=AHEAD, n_warmup_steps=1)
        return optuna.create_study(storage=storage, study_name=_NAME, directions=directions, pruner=pruner, load_if_exists=True)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged, or not a study of dexml ({error})") from None


__all__ = ["SAMPLERS", "Evaluate", "Evaluation", "Seen", "Study", "locked"]
