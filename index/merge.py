"""Answers over disjoint parts of the labels, made one: top-k and log-partition both merge exactly.

The best k of all are among the best k of each part, and log Z = log Σ_s e^{log Z_s}; both are associative, and a part without
labels (−1, −∞; log Z = −∞) changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dexml.types import Int64Array, TopK


def merged(parts: Sequence[TopK], by_score: Callable[[int, Int64Array], Int64Array] | None = None) -> TopK:
    """Return the best K of answers (B, K) over disjoint labels, by score descending, then id ascending, missing ones last.

    Kernels order by float64 scores and give float32 ones: with `by_score`, which puts labels in that order for a query by
    number, labels of equal float32 score stand as one kernel would have them. `log_z` is None where that of a part is.
    """
    ids, scores = (torch.cat(column, dim=1).numpy() for column in ([p.ids for p in parts], [p.scores for p in parts]))
    width = max(part.ids.shape[1] for part in parts)
    # Missing ones have −1 and −∞: no label scores −∞, so none comes before a label.
    order = np.lexsort((ids, -scores), axis=1)
    if by_score is not None:
        sorted_ = np.take_along_axis(scores, order, axis=1)
        equal = (sorted_[:, 1:] == sorted_[:, :-1]) & np.isfinite(sorted_[:, 1:])
        for row in np.flatnonzero(equal[:, :width].any(axis=1)):
            tied = np.zeros(ids.shape[1], dtype=bool)
            tied[1:] = equal[row]
            tied[:-1] |= equal[row]
            places = order[row, tied]
            places = places[np.argsort(ids[row, places])]
            order[row, tied] = places[np.searchsorted(ids[row, places], by_score(int(row), ids[row, places]))]
    best = order[:, :width]
    found, of_found = (torch.from_numpy(np.take_along_axis(column, best, axis=1)) for column in (ids, scores))
    return TopK(found, of_found, log_sum([part.log_z for part in parts]))


def log_sum(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Return log Σ_s e^{log Z_s} (B) of the log-partitions of disjoint labels; None where one is not known."""
    known = [part for part in parts if part is not None]
    return torch.logsumexp(torch.stack(known), dim=0) if len(known) == len(parts) else None


__all__ = ["log_sum", "merged"]
