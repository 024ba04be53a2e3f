"""Candidates scored where they lie: rows are read in place and never gathered into a (B, K, D) copy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from dexml.kernels.numba_scan import exact_scores


@njit(cache=True, parallel=True)
def rescore(queries: Any, labels: Any, ids: Any, scale: float, ordered: Any, scores: Any, log_z: Any) -> None:
    """Sort candidates by (score descending, id ascending) into `ordered` and `scores`, with log Σ e^{s·scale} over them."""
    batch, count = ids.shape
    for row in prange(batch):
        found = np.empty(count)
        exact_scores(queries[row], labels, ids[row], found)
        order = np.argsort(ids[row], kind="mergesort")
        order = order[np.argsort(-found[order], kind="mergesort")]
        peak = found[order[0]] * scale if count else -np.inf
        mass = 0.0
        for place in range(count):
            ordered[row, place] = ids[row, order[place]]
            score = found[order[place]]
            scores[row, place] = score
            if score > -np.inf:
                mass += np.exp(score * scale - peak)
        log_z[row] = peak + np.log(mass) if mass > 0 else -np.inf
