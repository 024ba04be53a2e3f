"""Tabu search as an Optuna sampler, beside Optuna's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from training.tuning.walk import WORST, Key, Place, TabuWalk


class TabuSampler(BaseSampler):  # type: ignore[misc]  # an extra, which mypy does not read
    """`TabuWalk` over a grid of integers (IntDistribution) and choices, whose order is that of their list; one objective.

    It keeps nothing: the walk is taken again, from the study's trials, before each point, so that a study that was killed goes
    on as if it had not been: a trial that was under way then does not count. Of a pruned trial the last intermediate value
    counts, and one that failed is the worst there is. `constraints` gives what a trial breaks of its bounds, each positive
    where it is broken: that counts before the objective. An objective suggests all parameters before it may fail. When all of
    the grid is known, points are drawn at random.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        *,
        start: Mapping[str, Any] | None = None,
        tenure: int = 8,
        patience: int = 20,
        seed: int = 0,
        constraints: Callable[[FrozenTrial], Sequence[float]] | None = None,
    ) -> None:
        """`space` and `start`, the first point, are of the study's parameters."""
        self._space = dict(space)
        self._values = {name: _grid(name, distribution) for name, distribution in space.items()}
        self._start = None if start is None else self._place(start)
        self._tenure, self._patience, self._seed = tenure, patience, seed
        self._constraints = constraints
        self._others = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the grid."""
        return self._space

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        """Return the next point of the walk, nothing where all of the grid is known."""
        place = self.walk(study).ask()
        if place is None:
            return {}
        return {name: values[number] for (name, values), number in zip(self._values.items(), place, strict=True)}

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """Return a random value of a parameter that is not on the grid."""
        return self._others.sample_independent(study, trial, name, distribution)

    def walk(self, study: Study) -> TabuWalk:
        """Return the walk as far as the trials of `study` go."""
        sizes = [len(values) for values in self._values.values()]
        walk = TabuWalk(sizes, tenure=self._tenure, patience=self._patience, seed=self._seed, start=self._start)
        for trial in study.get_trials(deepcopy=False):
            if trial.state.is_finished() and self._values.keys() <= trial.params.keys():
                walk.ask()
                walk.tell(self._place(trial.params), self._key(study, trial))
        return walk

    def _place(self, params: Mapping[str, Any]) -> Place:
        return tuple(values.index(params[name]) for name, values in self._values.items())

    def _key(self, study: Study, trial: FrozenTrial) -> Key:
        value = trial.value
        if trial.state == TrialState.PRUNED and trial.intermediate_values:
            value = trial.intermediate_values[max(trial.intermediate_values)]
        if trial.state == TrialState.FAIL or value is None or math.isnan(value):
            return WORST
        broken = 0.0 if self._constraints is None else sum(max(0.0, share) for share in self._constraints(trial))
        return broken, -value if study.direction == StudyDirection.MAXIMIZE else value


def _grid(name: str, distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    raise ValueError(f"tabu search needs a grid: {name} must be an integer without log, or a choice, got {distribution}")


__all__ = ["TabuSampler"]
