"""How near labels come to each other in an index: the nearest pairs by name, and the bound below which no labels could stay.

Every label is asked for its nearest others by the exact scan, a block of labels at a time: no L×L matrix, L²·D operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dexml.heads.equiangular import welch
from dexml.kernels import choose

BLOCK = 1024  # labels asked at a time
SAME = 0.999  # a cosine from which two labels are one for whoever asks
SHARES = (0.5, 0.9, 0.99)  # of labels, whose nearest neighbour is at most so near


@dataclass(frozen=True)
class Collisions:
    """The cosines among `labels` rows of `dimension`: `nearest` (L) of each label's nearest other, `opposed` the least of all.

    `pairs` are the nearest ones, cosine descending, as row numbers i < j.
    """

    labels: int
    dimension: int
    nearest: npt.NDArray[np.float32]
    opposed: float
    pairs: tuple[tuple[int, int, float], ...]

    @property
    def most(self) -> float:
        """Max |cos| over all pairs."""
        return max(float(self.nearest.max(initial=0.0)), -self.opposed)

    @property
    def ratio(self) -> float | None:
        """Max |cos| over Welch's bound; None where all labels could stand at right angles."""
        bound = welch(self.labels, self.dimension)
        return self.most / bound if bound > 0 else None

    def figures(self) -> dict[str, Any]:
        """Return all that is said but the pairs."""
        of_labels = dict(zip(SHARES, np.quantile(self.nearest, SHARES).tolist(), strict=True)) if self.labels > 1 else {}
        return {
            "labels": self.labels,
            "dimension": self.dimension,
            "max_abs_cosine": self.most,
            "least_cosine": self.opposed,
            "welch_bound": welch(self.labels, self.dimension),
            "welch_ratio": self.ratio,
            "labels_that_collide": int((self.nearest >= SAME).sum()),
            "nearest_cosine_of": {f"{share:.0%}": value for share, value in of_labels.items()},
        }


def collisions(rows: Tensor, pairs: int = 20, report: Callable[[int], None] = lambda done: None) -> Collisions:
    """Return the collisions among unit rows (L, D), with the nearest `pairs` of them; `report` gets the labels done."""
    kernels, (count, dimension) = choose(), rows.shape
    if count < 2:
        return Collisions(count, dimension, np.zeros(count, dtype=np.float32), 0.0, ())
    prepared = kernels.prepare(rows, copy="none")
    k = min(count, pairs + 1)  # a label of the nearest pairs has no more of them than there are, and finds itself besides
    nearest, opposed = np.empty(count, dtype=np.float32), np.inf
    kept: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]] = []
    for start in range(0, count, BLOCK):
        some = rows[start : start + BLOCK]
        found = kernels.scan(some, prepared, max(2, k), 1.0)
        own = np.arange(start, start + len(some))[:, None]
        ids, scores = found.ids.numpy(), np.where(found.ids.numpy() == own, -np.inf, found.scores.numpy())
        nearest[start : start + len(some)] = scores.max(axis=1)
        opposed = min(opposed, -float(kernels.scan(-some, prepared, 1, 1.0).scores.max()))
        first = (ids > own) & np.isfinite(scores)
        ends = np.stack([np.broadcast_to(own, ids.shape)[first], ids[first]], axis=1)
        kept.append(_best([*kept, (scores[first], ends)][-2:], pairs))
        del kept[:-1]
        report(start + len(some))
    scores, ends = kept[0]
    best = tuple((int(i), int(j), float(score)) for (i, j), score in zip(ends, scores, strict=True))
    return Collisions(count, dimension, nearest, float(opposed), best)


def _best(
    parts: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]], pairs: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the nearest pairs of all parts, cosine descending, then in the order of the labels."""
    scores, ends = (np.concatenate(of) for of in zip(*parts, strict=True))
    order = np.lexsort((ends[:, 1], ends[:, 0], -scores))[:pairs]
    return scores[order], ends[order]
