"""Ordered top-K attacks on the input embeddings of queries: QuadAttacK, and CW^K beside it, with equal iterations.

Both minimise λ·loss(f(x + δ)) + ‖δ‖² by AdamW, one back-propagation an iteration, λ falling by a quarter whenever a smaller δ
has succeeded; the optimiser starts anew after WARM_UP iterations. They differ in the loss alone (github.com/thomaspaniagua/
quadattack): the squared distance to the nearest point that is answered with the list, or the sum of violated inequalities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dexml.types import Int64Array
from index.audit import pushes
from index.base import ChangingIndex
from training.audit.inputs import Inputs

ITERATIONS = 60
WARM_UP = 5
_START = 2e-3  # of δ
_FALL = 0.75  # of λ

Loss = Callable[[ChangingIndex, Tensor, Int64Array, float], Tensor]


def nearest_point(index: ChangingIndex, rows: Tensor, targets: Int64Array, margin: float) -> Tensor:
    """Return ‖f − z*‖² (B), z* being the unit vector nearest to f that is answered with the list; 0 where there is none."""
    aims = pushes(index, rows.detach(), targets, margin)
    aimed = torch.stack([row.detach() if aim.row is None else aim.row for row, aim in zip(rows, aims, strict=True)])
    distances: Tensor = (rows - aimed).square().sum(dim=1)
    return distances


def violations(index: ChangingIndex, rows: Tensor, targets: Int64Array, margin: float) -> Tensor:
    """Return 1/K Σ_i max(0, m + max_{j ∉ t_1…t_i} s_j − min(s_{t_1}, …, s_{t_i})) (B): Carlini and Wagner's hinge for lists."""
    k = targets.shape[1]
    listed = torch.from_numpy(targets)
    ids = torch.cat([listed, index.search(rows.detach(), min(k + 1, len(index)), 1.0).ids], dim=1)
    labels = index.snapshot(ids.reshape(-1).numpy()).reshape(*ids.shape, -1)
    scores = torch.einsum("bd,bnd->bn", rows, labels)
    total = torch.zeros(len(rows))
    for i in range(1, k + 1):
        taken = (ids[:, :, None] == listed[:, None, :i]).any(dim=2)
        others = scores.masked_fill(taken, -torch.inf).amax(dim=1)
        total = total + (margin + others - scores[:, :i].amin(dim=1)).clamp(min=0)
    mean: Tensor = total / k
    return mean


@dataclass(frozen=True)
class Way:
    """An attack: loss, learning rate, first λ and margin of cosines, as `benchmarks/bench_audit.py` chose on training rows."""

    loss: Loss
    rate: float = 5e-3
    weight: float = 300.0
    margin: float = 0.01


WAYS: Mapping[str, Way] = {"QuadAttacK": Way(nearest_point), "CW^K": Way(violations, weight=1000.0)}


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack on B queries achieved.

    `reached` int64 (B) is the iteration, from 1, that first succeeded, 0 for none; `norms` float32 (B) are of the smallest δ
    that did, NaN for none, and `relative` (B) the same over the norm of the embeddings.
    """

    reached: Int64Array
    norms: npt.NDArray[np.float32]
    relative: npt.NDArray[np.float32]

    @staticmethod
    def joined(parts: Sequence[Attacked]) -> Attacked:
        """Return several batches as one."""
        reached = np.concatenate([part.reached for part in parts])
        norms = np.concatenate([part.norms for part in parts])
        return Attacked(reached, norms, np.concatenate([part.relative for part in parts]))

    @property
    def rate(self) -> float:
        """The share of queries that are answered with the list."""
        return float((self.reached > 0).mean()) if len(self.reached) else 0.0

    def curve(self, iterations: int = ITERATIONS) -> list[float]:
        """Return the share of queries that had succeeded after each iteration."""
        counts = np.bincount(self.reached, minlength=iterations + 1)[1:]
        shares: list[float] = (np.cumsum(counts) / max(len(self.reached), 1)).tolist()
        return shares


def attack(
    inputs: Inputs,
    index: ChangingIndex,
    targets: Int64Array,
    way: Way,
    *,
    iterations: int = ITERATIONS,
    seed: int = 0,
    told: Callable[[], bool] = lambda: False,
) -> Attacked | None:
    """Return what `way` achieves against the lists `targets` (B, K), or None where `told`, asked at each iteration, says stop.

    A query has succeeded where the index answers it with exactly its list. Needs an exact index.
    """
    k = targets.shape[1]
    wanted = torch.from_numpy(targets)
    delta = inputs.start(_START, seed)
    weights = torch.full((len(inputs),), way.weight)
    best = torch.full((len(inputs),), torch.inf)
    reached = torch.zeros(len(inputs), dtype=torch.int64)
    optimizer = torch.optim.AdamW(delta, lr=way.rate)
    for iteration in range(1, iterations + 1):
        if told():
            return None
        if iteration == WARM_UP + 1:
            optimizer = torch.optim.AdamW(delta, lr=way.rate)
        rows = inputs.rows(delta)
        energy = inputs.energy(delta)
        with torch.no_grad():
            won = (index.search(rows, k, 1.0).ids == wanted).all(dim=1)
            norms = energy.sqrt()
            better = won & (norms <= best)
            best = torch.where(better, norms, best)
            reached[won & (reached == 0)] = iteration
        loss = (weights * way.loss(index, rows, targets, way.margin)).sum() + energy.sum()
        for part, gradient in zip(delta, torch.autograd.grad(loss, delta), strict=True):
            part.grad = gradient
        optimizer.step()
        weights[better] *= _FALL
    found = np.where(torch.isfinite(best).numpy(), best.numpy(), np.float32(np.nan))
    return Attacked(reached.numpy(), found, found / inputs.norms.numpy())


__all__ = ["ITERATIONS", "WAYS", "Attacked", "Way", "attack"]
