"""What each row earns: two numbers a row and figure, whose sums' ratio is the figure (METHODS §4).

Of the means over rows the second is 1; of the propensity-scored figures, ratios of means, it is what the row could have earned.
A comparison of two runs draws rows anew and needs no more than these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dexml.metrics.found import hits
from dexml.positives import Int64Array, Positives

Float64Array = npt.NDArray[np.float64]
PLAIN = ("P", "R", "nDCG", "hits", "MRR", "MAP")
PROPENSITY = ("PSP", "PSnDCG", "PSR")
CUTOFFS = (1, 3, 5, 10, 20, 50, 100)


@dataclass(frozen=True, eq=False)
class Rows:
    """`gained` and `possible`, float64 (M, N), of M figures, `names` "P@1", …; a figure is 100 Σ gained / Σ possible.

    `found` bool (N, K) says which answers are true, as far as the last cutoff.
    """

    names: tuple[str, ...]
    gained: Float64Array
    possible: Float64Array
    found: npt.NDArray[np.bool_]

    def figures(self) -> dict[str, float]:
        """Return the figures in percent."""
        best = self.possible.sum(axis=1)
        values = 100 * self.gained.sum(axis=1) / np.where(best > 0, best, 1)
        return dict(zip(self.names, values.tolist(), strict=True))


def of_rows(
    ranked: Int64Array, truth: Positives, weights: Float64Array | None = None, cutoffs: Sequence[int] = CUTOFFS
) -> Rows:
    """Return what each row of `ranked` (N, K) earns at the cutoffs, which ascend; without `weights` (L) no propensities."""
    at = np.asarray(cutoffs) - 1
    if len(at) == 0 or at[0] < 0 or (np.diff(at) <= 0).any():
        raise ValueError(f"metrics: cutoffs must ascend from 1 or more, got {tuple(cutoffs)}")
    ranked = _wide(ranked, cutoffs[-1])
    found = hits(ranked, truth)
    ks, counts = np.asarray(cutoffs, dtype=np.float64), np.diff(truth.indptr)
    places = np.arange(1, cutoffs[-1] + 1)
    discounts = 1 / np.log2(places + 1)
    ideal = np.concatenate([[1.0], np.cumsum(discounts)])  # an empty row has no hits: its divisor does not matter
    so_far = np.cumsum(found, axis=1)
    at_k = so_far[:, at]
    of_true = np.maximum(counts, 1)[:, None]
    able = np.minimum(counts[:, None], cutoffs)
    first = np.where(at_k[:, -1] > 0, found.argmax(axis=1) + 1, cutoffs[-1] + 1)[:, None]
    values = [
        at_k / ks,
        at_k / of_true,
        np.cumsum(found * discounts, axis=1)[:, at] / ideal[able],
        (at_k > 0).astype(np.float64),
        (first <= ks) / first,
        np.cumsum(found * (so_far / places), axis=1)[:, at] / np.maximum(able, 1),
    ]
    possible = [np.ones_like(value) for value in values]
    if weights is not None:
        earned = found * weights[np.maximum(ranked, 0)]
        best = best_weights(truth, weights, cutoffs[-1])
        for of, into in ((earned, values), (best, possible)):
            sums = np.cumsum(of, axis=1)[:, at]
            into += [sums / ks, np.cumsum(of * discounts, axis=1)[:, at] / ideal[able], sums / of_true]
    kinds = PLAIN if weights is None else PLAIN + PROPENSITY
    names = tuple(f"{kind}@{k}" for kind in kinds for k in cutoffs)
    return Rows(names, np.concatenate(values, axis=1).T, np.concatenate(possible, axis=1).T, found)


def best_weights(truth: Positives, weights: Float64Array, k: int) -> Float64Array:
    """Return the k greatest weights of each row's positives, descending, float64 (N, k), 0 where there are fewer."""
    counts = np.diff(truth.indptr)
    rows = np.repeat(np.arange(len(truth)), counts)
    of_pairs = weights[truth.indices]
    order = np.lexsort((-of_pairs, rows))
    places = np.arange(len(rows)) - np.repeat(truth.indptr[:-1], counts)  # a row's pairs stay together in the order
    best = np.zeros((len(truth), k))
    near = places < k
    best[rows[near], places[near]] = of_pairs[order][near]
    return best


def _wide(ranked: Int64Array, k: int) -> Int64Array:
    """Return the first k answers of each row, −1 where there are none."""
    missing = k - ranked.shape[1]
    return ranked[:, :k] if missing <= 0 else np.pad(ranked, ((0, 0), (0, missing)), constant_values=-1)
