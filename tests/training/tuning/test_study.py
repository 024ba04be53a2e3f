"""Studies through Optuna: tabu search is the walk, all samplers go on identically after a kill, and nothing is paid twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna")

from dexml.errors import InputError  # noqa: E402
from training.tuning.goals import SEARCH, TRAINING, Goals  # noqa: E402
from training.tuning.sampler import TabuSampler  # noqa: E402
from training.tuning.space import Settings, Space  # noqa: E402
from training.tuning.study import SAMPLERS, Study, locked  # noqa: E402
from training.tuning.walk import TabuWalk  # noqa: E402

SPACE = ["a=1,2,4,8,16,32", "b=10,20,30,40,50", "kind=x,y"]
GOALS = Goals.of(["cost"], ["recall=0.8"], SEARCH)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: every trial is flushed to the disk some six times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


def figures(settings: Settings) -> dict[str, float]:
    a, b = float(settings["a"]), float(settings["b"])
    rugged = (a * 7 + b * 3 + "xy".index(str(settings["kind"])) * 5) % 11
    return {"cost": a + b + rugged, "recall": 1 - 1 / (a * b / 20 + 1)}


def made(
    out: Path, sampler: str = "tabu", goals: Goals = GOALS, seed: int = 1, space: Sequence[str] = SPACE, **options: Any
) -> Study:
    out.mkdir(parents=True, exist_ok=True)
    return Study(out, Space.of(space), goals, {"what": "test"}, sampler=sampler, seed=seed, **options)


def went(study: Study, most: int = 25, evaluate: Callable[[Settings], object] = figures) -> list[object]:
    assert study.go(lambda settings, seen: evaluate(settings), most)
    return [(one.place, one.figures) for one in study.evaluations()]


def test_the_sampler_asks_for_what_the_walk_asks_for(out: Path):
    study = made(out, start=(0, 0, 0))
    went(study)
    walk = TabuWalk(study.space.sizes, seed=1, start=(0, 0, 0))
    for one in study.evaluations():
        assert walk.ask() == one.place
        walk.tell(one.place, GOALS.badness(one.figures))


def test_tabu_finds_the_best_of_a_grid_as_an_optuna_sampler_of_anyone():
    space = {
        "n": optuna.distributions.IntDistribution(2, 20, step=2),
        "word": optuna.distributions.CategoricalDistribution(["a", "b", "c", "d"]),
    }
    study = optuna.create_study(direction="maximize", sampler=TabuSampler(space, start={"n": 2, "word": "d"}))
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial: optuna.Trial) -> float:
        n, word = trial.suggest_int("n", 2, 20, step=2), trial.suggest_categorical("word", ["a", "b", "c", "d"])
        if n == 4:
            trial.report(-90.0, 1)
            raise optuna.TrialPruned
        return float(-((n - 14) ** 2) - 10 * "abcd".index(word))

    study.optimize(objective, n_trials=24)
    assert study.best_params == {"n": 14, "word": "a"}
    assert len({tuple(sorted(trial.params.items())) for trial in study.trials}) == 24
    with pytest.raises(ValueError, match="a grid"):
        TabuSampler({"x": optuna.distributions.FloatDistribution(0, 1)})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_that_was_stopped_goes_on_as_if_it_had_not_been(out: Path, sampler: str):
    start = None if sampler == "tabu" else (1, 1, 1)  # whose walk would be the same with any seed, until its first restart
    whole = went(made(out / "whole", sampler, start=start))
    assert start in (None, whole[0][0])
    assert len({place for place, _ in whole}) == 25

    class Killed(Exception):
        pass

    for cut in (4, 11):
        count = 0

        def evaluate(settings: Settings) -> dict[str, float]:
            nonlocal count
            count += 1
            if count > cut:  # noqa: B023
                raise Killed
            return figures(settings)

        for _ in range(3):  # killed within an evaluation, again and again
            count = 0
            with pytest.raises(Killed):
                went(made(out / f"cut{cut}", sampler, start=start), 300, evaluate)
        parts = went(made(out / f"cut{cut}", sampler, start=start), max(25, 3 * cut))
        assert parts[:25] == whole
    assert went(made(out / "other", sampler, start=start, seed=2)) != whole


def test_all_of_a_grid_is_evaluated_once_and_the_best_within_the_bounds_is_told(out: Path):
    for sampler in SAMPLERS:
        study = made(out / sampler, sampler, space=["a=1,2,4,8,16", "b=10,20,30,40", "kind=x"])
        assert len(went(study, 1000)) == 20 == len({one.place for one in study.evaluations()})
        within = [one for one in study.evaluations() if one.figures["recall"] >= 0.8]
        best = study.best()
        assert best is not None and best.figures["cost"] == min(one.figures["cost"] for one in within)


def test_what_is_refused_is_not_asked_again_and_what_is_hopeless_is_cut_short(out: Path):
    goals = Goals.of(["P@1"], [], TRAINING)

    def evaluate(settings: Settings, seen: Callable[[int, dict[str, float]], None]) -> dict[str, float]:
        if settings["a"] == 4:
            raise InputError("four is refused")
        for epoch in range(1, 5):
            value = float(settings["b"]) * epoch / 4
            seen(epoch, {"P@1": value})
        return {"P@1": value}

    study = made(out, "random", goals, pruned=True, space=["a=2,4", "b=10,20,30,40,50", "kind=x,y"])
    assert study.go(evaluate, 60)
    states = [one.state for one in study.evaluations()]
    assert len(states) == 20 and states.count("refused") == 10
    assert {one.why for one in study.evaluations() if one.state == "refused"} == {"four is refused"}
    cut = [one for one in study.evaluations() if one.state == "pruned"]
    assert cut and all(float(one.settings["b"]) < 50 for one in cut)
    best = study.best()
    assert best is not None and best.settings["b"] == 50
    assert study.importance("P@1")["b"] > 0.9


def test_several_objectives_have_a_front_and_tabu_says_that_it_takes_one(out: Path):
    goals = Goals.of(["recall", "cost"], [], SEARCH)
    with pytest.raises(InputError, match="one objective"):
        made(out, "tabu", goals)
    study = made(out, "tpe", goals)
    went(study, 30)
    front = [one.figures for one in study.front()]
    assert front == sorted(front, key=lambda some: -some["recall"])
    assert [some["cost"] for some in front] == sorted((some["cost"] for some in front), reverse=True)
    assert len(front) > 2
    for one in study.evaluations():
        assert one.figures in front or any(goals.dominated(one.figures, other) for other in front)


def test_another_study_and_another_process_are_refused_and_a_torn_line_is_mended(out: Path):
    with locked(out):
        first = went(made(out), 5)
        with pytest.raises(InputError, match="another process"), locked(out):
            pass
    with pytest.raises(InputError, match="seed = 1, and not 2"):
        made(out, seed=2)
    with (out / "study.log").open("ab") as log:
        log.write(b'{"op_code":4,"wor')
    (out / "study.log.lock").symlink_to("nowhere")  # of a process that was killed while it wrote
    began = time.monotonic()
    with locked(out):
        assert went(made(out), 9)[:5] == first
    assert time.monotonic() - began < 20  # Optuna alone would wait for half a minute
    (out / "study.log").write_text("no journal\n", encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        made(out)


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_study import figures, made
from training.tuning.study import locked
def evaluate(settings, seen):
    print(settings, flush=True)
    time.sleep(0.02)
    return figures(settings)
with locked(Path({out!r})):
    made(Path({out!r})).go(evaluate, 25)
"""


def test_a_process_that_was_killed_loses_no_more_than_it_was_at(out: Path):
    code = SLOW.format(tests=str(Path(__file__).parent), out=str(out / "killed"))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(8)]
        process.send_signal(signal.SIGKILL)
    with locked(out / "killed"):
        study = made(out / "killed")
        assert len(study.evaluations()) >= 7 and all(seen)
        assert went(study) == went(made(out / "whole"))
