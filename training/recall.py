"""What a memory of training queries weighs in a bundle's answers: λ, τ_m and k, chosen on rows that it does not hold."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dexml.calibration import forget
from dexml.manifest import MemoryFacts
from dexml.memory import FOLDER, Memory, chosen
from dexml.metrics import Float64Array, hits
from dexml.types import Int64Array, Positives, Split
from index.exact import ExactIndex
from index.live import LiveIndex
from index.recall import REFERENCE, Recall, ordered
from training.config import AUTO, MemorySection

if TYPE_CHECKING:
    from training.run import Run

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # λ: 0.1 suits a strong model, 30 one without a training
TEMPERATURES = (0.02, 0.035, 0.05, 0.07, 0.1)
NEIGHBOURS = (10, 20, 50, 100)
USUAL = {"weight": 0.3, "temperature": 0.05, "neighbours": 50}  # METHODS §3, for what cannot be chosen
DEPTH = 100


@dataclass(frozen=True)
class Weighed:
    """A choice of λ, τ_m and k, and the figures of the watched rows with it and without, in percent: P@1, P@5, R@100."""

    weight: float
    temperature: float
    neighbours: int
    without: tuple[float, float, float] | None = None
    figures: tuple[float, float, float] | None = None

    def facts(self, memory: Memory) -> MemoryFacts:
        """Return what a manifest says of `memory`."""
        return MemoryFacts(
            queries=len(memory),
            texts=memory.texts is not None,
            weight=self.weight,
            temperature=self.temperature,
            neighbours=self.neighbours,
        )

    def __str__(self) -> str:
        said = f"weight {self.weight:g}, temperature {self.temperature:g}, {self.neighbours} neighbours"
        if self.without is None or self.figures is None:
            return f"{said} (not chosen on rows of their own)"
        names = ("P@1", "P@5", "R@100")
        figures = (f"{name} {a:.1f} → {b:.1f}" for name, a, b in zip(names, self.without, self.figures, strict=True))
        return f"{said}; on rows held out: {', '.join(figures)}"


def remember(split: Split, rows: Tensor, section: MemorySection, seed: int) -> Memory | None:
    """Return the memory of the queries of `split` with their unit `rows` (N, D), as `section` asks; None where none is left.

    Rows without a label, and those of which the model knows no word, can speak for nothing and are not kept.
    """
    able = np.flatnonzero((np.diff(split.positives.indptr) > 0) & rows.any(dim=1).numpy())
    most = len(able) if section.queries == "all" else section.queries
    kept = able[chosen(len(able), most, seed)]
    if len(kept) == 0:
        return None
    texts = tuple(split.texts[row] for row in kept.tolist()) if section.texts else None
    return Memory(rows[torch.from_numpy(kept)], split.positives.take(kept), texts)


def usual(section: MemorySection) -> Weighed:
    """Return what `section` sets, and the published values for the rest."""
    set_by_hand = {name: value for name in USUAL if (value := getattr(section, name)) != AUTO}
    return Weighed(**{**USUAL, **set_by_hand})


def weigh(
    memory: Memory,
    labels: Tensor,
    queries: Tensor,
    truth: Positives,
    temperature: float,
    section: MemorySection,
) -> Weighed:
    """Return the λ, τ_m and k, of a small grid, that gain most on the unit rows `queries` (N, D) over the labels alone.

    The gain is that of P@1 + P@5 + R@100, of each the mean over rows less its standard error: of a few hundred rows, the best
    P@1 among many choices is luck. No choice that loses P@1 or P@5 is taken; λ = 0 loses nothing. `labels` are unit rows
    (L, D), `temperature` is the bundle's τ. What `section` sets stays. The memory must not hold the rows: each would find
    itself.
    """
    index = ExactIndex(scan_copy="none")
    index.build(labels)
    live = LiveIndex(index, labels, index.kernels)
    topk = live.search(queries, min(max(REFERENCE, DEPTH), len(labels)), temperature)
    without = _figures(topk.ids.numpy(), truth)
    best, most = None, -math.inf
    grid = itertools.product(_values(section.neighbours, NEIGHBOURS), _values(section.temperature, TEMPERATURES))
    facts = MemoryFacts(queries=len(memory), texts=False, weight=0, temperature=1, neighbours=1)
    recall = Recall(memory, facts, temperature)
    for neighbours, softness in grid:
        said = recall.evidence(queries, live, neighbours, softness)
        ids, scores = recall.joined(queries, topk, said, live)
        mass = said.of(ids)
        for weight in _values(section.weight, WEIGHTS):
            lifted = recall.lifted(scores, mass, topk, weight)
            ranked = np.take_along_axis(ids, ordered(ids, lifted)[:, :DEPTH], axis=1)
            figures = _figures(ranked, truth)
            gains = figures - without
            mean = gains.mean(axis=0)
            sure = float((mean - gains.std(axis=0) / math.sqrt(len(gains))).sum())
            if sure > most and (section.weight != AUTO or min(mean[0], mean[1]) >= 0):
                before, after = without.mean(axis=0).tolist(), figures.mean(axis=0).tolist()
                best, most = Weighed(weight, softness, neighbours, tuple(before), tuple(after)), sure
    assert best is not None, "λ = 0 is always allowed"
    return best


def weigh_run(run: Run, labels: Tensor | None = None) -> Weighed | None:
    """Return the choice on the rows that a run watches, with the rows it was trained on as the memory; None without either.

    `labels` are the run's unit rows (L, D), where they are there already. Of several ranks the first gets the choice.
    """
    config, watched = run.config, run.validation
    if config.memory.queries == 0 or watched is None:
        return None
    labels = run.embeddings(quick=True) if labels is None else labels
    if not run.world.first:
        return None
    memory = remember(run.train, run.query_rows(run.train.texts), config.memory, config.seed)
    if memory is None:
        return None
    queries = run.query_rows(watched.texts)
    return weigh(memory, labels, queries, watched.positives, config.loss.options["temperature"], config.memory)


def written(memory: Memory) -> Callable[[Path], None]:
    """Return what puts `memory` into the folder of a version, in place of one that is there."""

    def write(folder: Path) -> None:
        forgotten(folder)
        memory.write(folder)

    return write


def forgotten(folder: Path) -> None:
    """Take the memory out of the folder of a version that is being filled, and what was fitted to answers with it."""
    forget(folder)
    if (folder / FOLDER).exists():
        shutil.rmtree(folder / FOLDER)


def _values(asked: float | str, grid: Sequence[Any]) -> Sequence[Any]:
    return grid if asked == AUTO else (asked,)


def _figures(ranked: Int64Array, truth: Positives) -> Float64Array:
    """Return P@1, P@5 and R@100 of each row in percent, float64 (N, 3)."""
    found = hits(ranked[:, :DEPTH], truth)
    sizes = np.maximum(np.diff(truth.indptr), 1)
    return 100 * np.stack([found[:, 0], found[:, :5].sum(axis=1) / 5, found.sum(axis=1) / sizes], axis=1)
