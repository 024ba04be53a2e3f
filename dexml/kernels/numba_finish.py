"""The end of a scan: the parts merged, candidates scored exactly, and the log-partition with its standard error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange

from dexml.kernels.instructions import weigh
from dexml.kernels.numba_scan import Call, State, best_of, exact_scores, kth_largest


@njit(cache=True, parallel=True)
def finish(
    call: Call,
    state: State,
    which: Any,
    wide: bool,
    noise: Any,
    known: Any,
    sample: Any,
    ids: Any,
    scores: Any,
    log_z: Any,
    doubt: Any,
) -> None:
    """Merge the parts of the rows `which`: exact top-k into `ids` and `scores` (B, k), the partition sum into `log_z` (B).

    Candidates are scored exactly: those that may be among the best k, or `wide` all that were kept. The others enter the sum
    as they are; only they, with their share of it, can be wrong, and `doubt` (B) becomes the standard error of log_z:

    * Labels were rounded at random. Each s/τ is off by an independent error of mean zero and deviation `noise[row, 0]`; what
      that adds to the mean of an exponential is taken off, and a tenth of it is left in doubt. Σ_j ε_j and Σ_j ε_j s_j over
      all labels are known beforehand (`rounding.Levers`), so the part of the masses that is linear in the score carries no
      error: a least squares fit takes it out. `known` (B, 5) are the number of labels, Σs, Σs², Σε and Σεs of every row.
    * The query's rounding moves log_z by ⟨x − x̃, ȳ⟩/τ, where ȳ is the mean of those others under the softmax. Of an error
      without a preferred direction 0 is expected, with a deviation of `noise[row, 1]`. The sample says more: `sample` is the
      exact scores of every stride-th label, what rounding took from them, both float32 (B, S+), padded with −inf and 0, and
      the stride. An estimate over n effective labels counts n/(n + 1).

    Candidates found in the sample leave it as −inf.
    """
    sampled, pulls, stride = sample
    for place in prange(len(which)):
        row, parts = which[np.int64(place)], len(state.counts)
        found, near = _merge(call, state, row, wide)
        exact = np.empty(len(found))
        exact_scores(call.rows[row], call.labels, found, exact)
        best = best_of(exact, call.k)
        for n in range(len(best)):
            ids[row, n], scores[row, n] = found[best[n]], exact[best[n]]
        top = np.float64(np.max(state.top[:, row]))
        if len(best):
            top = max(top, exact[best[0]] * call.scale) if not call.unified else top
        total, square, moment = 0.0, 0.0, 0.0
        for part in range(parts):
            factor = math.exp(np.float64(state.top[part, row]) - top)
            total += state.total[part, row] * factor
            square += state.square[part, row] * factor * factor
            moment += state.moment[part, row] * factor
        of_candidates, whole, sums = 0.0, total, known[row].copy()
        for n in range(len(found)):
            of_candidates += math.exp(exact[n] * call.scale - top)
            mass, error = math.exp(near[n] * call.scale - top), exact[n] - near[n]
            total -= mass
            square -= mass * mass
            moment -= mass * near[n]
            sums[0] -= 1
            sums[1] -= exact[n]
            sums[2] -= exact[n] * exact[n]
            sums[3] -= error
            sums[4] -= error * exact[n]
            if stride and found[n] % stride == 0:
                sampled[row, found[n] // stride] = -np.inf
        doubt[row] = 0.0
        # Taking candidates off a sum of float32 exponentials leaves their rounding behind: less than this is nothing.
        if total < 1e-6 * whole:
            total = 0.0
        elif stride:
            bias = noise[row, 0] ** 2 / 2
            linear, rest = _linear(sums, total, moment, square)
            own = noise[row, 0] * math.sqrt(rest) / total
            pull, doubtful = _pull(call, sampled[row], pulls[row], top)
            total *= math.exp(pull - bias + linear * call.scale / total)
            share = total / (total + of_candidates)
            doubt[row] = share * math.sqrt(own**2 + (bias / 10) ** 2 + (noise[row, 1] * doubtful) ** 2)
        if noise[row, 0] > 0.05:  # the first order says little
            doubt[row] = np.inf
        log_z[row] = top + math.log(of_candidates + total) if of_candidates + total > 0 else -np.inf


@njit(cache=True)
def _linear(sums: Any, total: float, moment: float, square: float) -> Any:
    """Return Σ (a + b·s)ε of the best linear fit a + b·s of the masses, and Σ of what it leaves of them, squared."""
    determinant = sums[0] * sums[2] - sums[1] * sums[1]
    if not (sums[0] > 0 and determinant > 1e-9 * sums[0] * sums[2]):
        return 0.0, max(square, 0.0)
    a = (sums[2] * total - sums[1] * moment) / determinant
    b = (sums[0] * moment - sums[1] * total) / determinant
    return a * sums[3] + b * sums[4], max(square - a * total - b * moment, 0.0)


@njit(cache=True)
def _merge(call: Call, state: State, row: int, wide: bool) -> Any:
    """Return ids and approximate scores of the candidates of one row, in the order of the labels."""
    count = np.sum(state.counts[:, row])
    found, near = np.empty(count, np.int64), np.empty(count, np.float32)
    n = 0
    for part in range(len(state.counts)):
        filled = state.counts[part, row]
        found[n : n + filled] = state.ids[part, row, :filled]
        near[n : n + filled] = state.scores[part, row, :filled]
        n += filled
    if count > call.k and not wide:
        kept = near >= np.float32(kth_largest(near, call.k) - 2 * call.error[row])
        return found[kept], near[kept]
    return found, near


@njit(cache=True)
def _pull(call: Call, sampled: Any, pulls: Any, top: float) -> Any:
    """Return what the sample adds to the log of the rest, and the part of the deviation that it leaves."""
    work = np.zeros(64, np.float32)
    work[:16] = top
    weigh(sampled.ctypes.data, pulls.ctypes.data, len(sampled) // 16, np.float32(call.scale), work.ctypes.data)
    sums = work.reshape(4, 16).astype(np.float64).sum(axis=1)
    total, square, pulled = sums[1], sums[2], sums[3]
    if not (total > 0 and square > 0):
        return 0.0, 1.0
    concentration = square / total**2  # 1/n
    return pulled / total * call.scale / (1 + concentration), math.sqrt(concentration / (1 + concentration))
