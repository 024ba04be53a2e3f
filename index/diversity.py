"""Diverse answers by Soft-NMS (Bodla et al. 2017): a label much like one above it counts for less, and none is removed.

Soft-NMS multiplies positive scores by e^{−sim²/σ}; cosines may be negative, and the factor would raise those. So it is the
probabilities e^{s/τ}/Z that decay here, which are positive: p_j ← p_j · e^{−sim²/σ}. In logarithms, times τ, that is
s_j ← s_j − τ · sim²/σ, which lowers any score, under- and overflows nowhere, and needs no Z.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dexml.types import Float32Array, Int64Array, TopK

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Diversity:
    """How labels push their like away: the smaller `sigma` > 0, the further; ∞ is the plain order.

    The labels with ids `hidden` and those that score below `floor` push nobody, and nobody sees them: they come after all
    others, as missing answers.
    """

    sigma: float
    hidden: frozenset[str] = frozenset()
    floor: float = -math.inf


def diversified(
    found: TopK,
    k: int,
    asked: Diversity,
    rows: Callable[[Int64Array], Tensor],
    hidden: Int64Array,
    temperature: float,
) -> tuple[TopK, Tensor]:
    """Return the k first of `found` (B, K) in their diverse order, and the scores they were ranked by, float32 (B, k).

    Scores and log_z stay what they were. A ranking score is the score less τ/σ · Σ max(0, cos)² over the labels above; they
    descend, and of equal ones the first of `found` is first. `rows` gives the unit rows of label numbers, `hidden` holds the
    numbers of `asked.hidden`, and `temperature` is the τ the scores were trained with, so that the τ of a request changes
    probabilities and never the order. Takes O(K²) for each query.
    """
    ids, scores = found.ids.numpy(), found.scores.numpy()
    k = min(k, ids.shape[1])
    out_ids = np.full((len(ids), k), -1, dtype=np.int64)
    out_scores, ranks = (np.full((len(ids), k), -np.inf, dtype=np.float32) for _ in range(2))
    seen = (ids >= 0) & np.isfinite(scores) & (scores >= asked.floor) & ~np.isin(ids, hidden)
    for query in range(len(ids)):
        places = np.flatnonzero(seen[query])
        if len(places) == 0:
            continue
        unit = rows(ids[query, places]).float().numpy()
        decay = temperature / asked.sigma * np.square(np.clip(unit @ unit.T, 0.0, 1.0), dtype=np.float64)
        order, ranked = _greedy(scores[query, places], decay, k)
        chosen = places[order]
        out_ids[query, : len(chosen)] = ids[query, chosen]
        out_scores[query, : len(chosen)] = scores[query, chosen]
        ranks[query, : len(chosen)] = ranked
    return TopK(torch.from_numpy(out_ids), torch.from_numpy(out_scores), found.log_z), torch.from_numpy(ranks)


def _greedy(scores: Float32Array, decay: Float64Array, k: int) -> tuple[Int64Array, Float64Array]:
    """Return the first k places in diverse order and their ranking scores; `decay` (K, K) is what one takes from another."""
    left = scores.astype(np.float64)
    count = min(k, len(left))
    order, ranked = np.empty(count, dtype=np.int64), np.empty(count)
    for turn in range(count):
        best = int(left.argmax())  # the first of equal ones
        order[turn], ranked[turn] = best, left[best]
        left -= decay[best]
        left[best] = -np.inf
    return order, ranked
