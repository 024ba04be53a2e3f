"""How near a query is to another answer: the first boundary that a turn of it meets, in closed form.

The queries with the same first k labels, in order or as a set, are a convex cone whose faces are among the planes
⟨e_i − e_c, z⟩ = 0. From inside, the nearest plane is met first, at the angle arcsin ⟨e_i − e_c, q⟩/‖e_i − e_c‖.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from index.audit.programme import Float64Array
from index.base import ChangingIndex

AHEAD = 64  # labels below the answer that are looked at first


@dataclass(frozen=True)
class Boundary:
    """The nearest change of an answer: after a turn by `angle` degrees the label (row) `rises` passes the label `falls`."""

    angle: float
    rises: int
    falls: int


def boundaries(index: ChangingIndex, queries: Tensor, k: int) -> tuple[list[Boundary], list[Boundary]]:
    """Return, for unit rows `queries` float32 (B, D), the nearest change of the first k labels' order, and of which they are.

    The first list counts a new label as a change of order too. Label rows must be unit rows, and the index exact: how many
    labels are looked at follows from that no two are further apart than 2. Needs more labels than k.
    """
    if not 0 < k < len(index):
        raise ValueError(f"k must be from 1 to {len(index) - 1}, one less than there are labels")
    orders: list[Boundary] = []
    sets: list[Boundary] = []
    for query in queries:
        depth = k + AHEAD
        while True:
            depth = min(depth, len(index))
            ids = index.search(query[None], depth, 1.0).ids[0]
            ids = ids[ids >= 0]
            rows = index.snapshot(ids.numpy()).double().numpy()
            scores = rows @ query.double().numpy()
            order, entry = _nearest(rows, scores, k)
            unseen = scores[k - 1] - scores[-1]  # what is not looked at is further below than that
            if depth == len(index) or unseen / 2 >= math.sin(entry[0]):
                break
            depth *= 4
        for found, kept in ((order, orders), (entry, sets)):
            kept.append(Boundary(math.degrees(found[0]), int(ids[found[1]]), int(ids[found[2]])))
    return orders, sets


def _nearest(rows: Float64Array, scores: Float64Array, k: int) -> tuple[tuple[float, int, int], tuple[float, int, int]]:
    """Return the nearest change of order and of the set as (angle, rank that rises, rank that falls)."""
    sines = _sines(scores[:k, None] - scores[None, k:], np.linalg.norm(rows[:k, None] - rows[None, k:], axis=2))
    falls, rises = np.unravel_index(int(sines.argmin()), sines.shape)
    entry = (math.asin(min(1.0, sines.min())), k + int(rises), int(falls))
    if k == 1:
        return entry, entry
    swaps = _sines(scores[: k - 1] - scores[1:k], np.linalg.norm(rows[: k - 1] - rows[1:k], axis=1))
    place = int(swaps.argmin())
    swap = (math.asin(min(1.0, swaps.min())), place + 1, place)
    return min(swap, entry), entry


def _sines(gaps: Float64Array, lengths: Float64Array) -> Float64Array:
    """Return gap/length, 0 where float64 disagrees with the index on which is first, ∞ for labels with the same row."""
    sines: Float64Array = np.full(gaps.shape, np.inf)
    np.divide(np.maximum(gaps, 0.0), lengths, out=sines, where=lengths > 1e-7)
    return sines


__all__ = ["AHEAD", "Boundary", "boundaries"]
