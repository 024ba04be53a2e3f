"""What `dexml tune` finds: on rugged grids beside three controls, and on real indexes beside exhaustive search.

python benchmarks/bench_tune.py RUN DATA [--seeds 40] [--first-seed 1000] [--name tune]

RUN is a run or bundle, DATA its data set. Its labels stand behind IVF256,SQ4 and behind HNSW32_SQ4; 16 values of nprobe or
ef_search by 16 of candidates are all evaluated, on training rows held out. Each sampler then gets a tenth of that, for each of
four bounds on recall@10, and the walk of the paper beside ours. What counts is the rows compared with, not time: it is the same
on every machine. The defaults of the walk were chosen on esco13k and on seeds from 0: other data and seeds are the test.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import describe, write_result

from data import open_format
from dexml.bundle import Bundle
from dexml.device import import_faiss
from training.tuning.goals import SEARCH, Figures, Goals
from training.tuning.searching import Searches, watched_rows
from training.tuning.space import Settings, Space
from training.tuning.study import SAMPLERS, Study
from training.tuning.walk import Place, TabuWalk

Grid = npt.NDArray[np.float64]
SIZES = (6, 6, 6, 6)
BUDGET = 130
PAPER: dict[str, Any] = {
    "probes": 0,
    "eager": False,
}  # as the paper has it: from one random point, to the best of all neighbours
WALKS: dict[str, dict[str, Any]] = {"paper": PAPER, "only probes": {"eager": False}, "only eager": {"probes": 0}}
EXPLORE = {
    "IVF256,SQ4": "nprobe=1,2,3,4,6,8,12,16,24,32,48,64,96,128,192,256",
    "HNSW32_SQ4": "ef_search=8,10,12,16,20,24,32,40,48,64,80,96,128,160,192,256",
}
CANDIDATES = "candidates=10,12,14,16,20,24,28,32,40,48,56,64,80,96,128,160"
BOUNDS = (0.9, 0.95, 0.98, 0.99)
CLOSE = 1.03  # of the least cost within the bound


def rugged(seed: int, amplitude: float) -> Grid:
    """Return exp(−‖p − c‖²/10) around a random c, with uniform noise."""
    random = np.random.default_rng(seed)
    hill = np.exp(-_squares(random.integers(0, 6, 4)) / 10)
    return np.asarray(hill + amplitude * random.random(SIZES))


def trap() -> Grid:
    """Return a wide hill at one corner and a steeper, higher one at the other."""
    return np.maximum(np.exp(-_squares(1) / 10), 1.5 * np.exp(-_squares(5) / 2))


def walked(grid: Grid, seed: int, budget: int = BUDGET, **options: Any) -> float:
    """Return the best that tabu search sees."""
    walk = TabuWalk(SIZES, seed=seed, **options)
    while len(walk.keys) < budget and (place := walk.ask()) is not None:
        walk.tell(place, (-float(grid[place]),))
    return -min(walk.keys.values())[0]


def at_random(grid: Grid, seed: int) -> float:
    """Return the best of as many random points, none twice."""
    return float(np.random.default_rng(seed).choice(grid.ravel(), BUDGET, replace=False).max())


def climbed(grid: Grid, seed: int, *, again: bool) -> float:
    """Return the best that steepest ascent sees, from one random point, or with `again` from new ones until all is spent."""
    random = np.random.default_rng(seed)
    seen: dict[Place, float] = {}

    def value(place: Place) -> float:
        if len(seen) < BUDGET:
            seen.setdefault(place, float(grid[place]))
        return seen.get(place, -np.inf)

    while len(seen) < BUDGET:
        place: Place = tuple(random.integers(0, SIZES).tolist())
        while True:
            here = value(place)
            steps = [(*place[:a], place[a] + d, *place[a + 1 :]) for a in range(4) for d in (-1, 1) if 0 <= place[a] + d < 6]
            best = max(steps, key=value)
            if value(best) <= here:
                break
            place = best
        if not again:
            break
    return max(seen.values())


WAYS: dict[str, Callable[[Grid, int], float]] = {
    "tabu (dexml tune)": walked,
    "tabu, tenure 30": lambda grid, seed: walked(grid, seed, tenure=30),
    "tabu as in the paper": lambda grid, seed: walked(grid, seed, **PAPER),
    "tabu as in the paper, tenure 30": lambda grid, seed: walked(grid, seed, tenure=30, **PAPER),
    "hill-climbing with restarts": lambda grid, seed: climbed(grid, seed, again=True),
    "hill-climbing once": lambda grid, seed: climbed(grid, seed, again=False),
    "random search": at_random,
}


def of_landscapes(seeds: range) -> list[dict[str, Any]]:
    """Return, for each way, the percentage of seeds with a hit: within 1% of the grid's best."""
    lines = []
    for name, way in WAYS.items():
        line: dict[str, Any] = {"way": name}
        for title, amplitude in (("rugged .3", 0.3), ("rugged .6", 0.6), ("smooth", 0.0)):
            grids = [rugged(seed, amplitude) for seed in seeds]
            hits = [way(grid, 1000 + seed) >= 0.99 * grid.max() for seed, grid in zip(seeds, grids, strict=True)]
            line[title] = 100 * float(np.mean(hits))
        lines.append(line)
    return lines


def of_trap(seeds: range) -> dict[str, float]:
    """Return how often a walk that starts on the wide hill leaves it: before its first restart, and in 400 evaluations."""
    grid, before, after = trap(), 0, 0
    for seed in seeds:
        walk = TabuWalk(SIZES, seed=seed, start=(1, 1, 1, 1), patience=100, probes=0)
        while (not walk.moves or walk.moves[-1].how != "restart") and len(walk.keys) < 400:
            place = walk.ask()
            if place is None:
                break
            walk.tell(place, (-float(grid[place]),))
        before += min(walk.keys.values())[0] == -1.5
        after += walked(grid, seed, 400, start=(1, 1, 1, 1)) == 1.5
    return {"without a restart": 100 * before / len(seeds), "with restarts, 400 evaluations": 100 * after / len(seeds)}


def table(searches: Searches, space: Space) -> dict[Place, Figures]:
    """Return the figures of all points."""
    places = itertools.product(*map(range, space.sizes))
    return {place: searches(space.settings(place)) for place in places}


def of_index(space: Space, known: dict[Place, Figures], bound: float, seeds: range) -> dict[str, Any]:
    """Return what each sampler finds in a tenth of the evaluations: how often within 3% of the best, and the median ratio."""
    goals = Goals.of(["cost"], [f"recall={bound}"], SEARCH)
    best = min(known.values(), key=goals.badness)
    budget = len(known) // 10
    line: dict[str, Any] = {"bound": bound, "best": best, "evaluations": budget, "of": len(known)}

    def evaluate(settings: Settings, seen: object) -> Figures:
        place = space.place(settings)
        assert place is not None
        return known[place]

    memory = Path("/dev/shm")
    for sampler in SAMPLERS:
        ratios = []
        for seed in seeds:
            with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as out:
                study = Study(Path(out), space, goals, {}, sampler=sampler, seed=seed)
                study.go(evaluate, budget)
                found = study.best()
            assert found is not None
            ratios.append(_ratio(goals, found.figures, best))
        line[sampler] = _summary(ratios)
    for name, options in WALKS.items():
        ratios = []
        for seed in seeds:
            walk = TabuWalk(space.sizes, seed=seed, **options)
            while len(walk.keys) < budget and (place := walk.ask()) is not None:
                walk.tell(place, goals.badness(known[place]))
            ratios.append(_ratio(goals, known[min(walk.keys, key=lambda some: walk.keys[some])], best))
        line[name] = _summary(ratios)
    return line


def _ratio(goals: Goals, found: Figures, best: Figures) -> float:
    return found["cost"] / best["cost"] if goals.kept(found) else np.inf


def _summary(ratios: list[float]) -> dict[str, float]:
    return {"close": 100 * float(np.mean([ratio <= CLOSE for ratio in ratios])), "median": statistics.median(ratios)}


def main() -> None:
    """Measure, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--name", default="tune")
    given = parser.parse_args()
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    landscapes = of_landscapes(seeds)
    for line in landscapes:
        print(f"{line['way']:32} " + "  ".join(f"{name} {line[name]:5.1f} %" for name in line if name != "way"))
    trapped = of_trap(seeds)
    print("a wide trap is left: " + ", ".join(f"{name} {share:.1f} %" for name, share in trapped.items()))
    import_faiss().omp_set_num_threads(1)  # the same graph every time
    opened = Bundle.open(given.run)
    searches = Searches(given.run, watched_rows(opened, open_format(given.data, "auto"), None))
    indexes: dict[str, Any] = {}
    for factory, explored in EXPLORE.items():
        space = Space.of([f'factory="{factory}"', explored, CANDIDATES])
        known = table(searches, space)
        indexes[factory] = [of_index(space, known, bound, seeds) for bound in BOUNDS]
        for line in indexes[factory]:
            best = line["best"]
            said = ", ".join(
                f"{name} {line[name]['close']:5.1f} % (×{line[name]['median']:.3f})" for name in (*SAMPLERS, *WALKS)
            )
            print(
                f"{factory}, recall ≥ {line['bound']}: least cost {best['cost']:,.0f}; within 3 % after "
                f"{line['evaluations']} of {line['of']}: {said}"
            )
    setting = {"data": given.data.name, "labels": len(opened.labels), "queries": len(searches.queries), "seeds": [*seeds]}
    result = {"machine": describe(), "setting": setting, "landscapes": landscapes, "trap": trapped, "indexes": indexes}
    print(write_result(given.name, result))


def _squares(centre: Any) -> Grid:
    return np.asarray(((np.indices(SIZES).T - centre) ** 2).sum(-1).T, dtype=np.float64)


if __name__ == "__main__":
    main()
