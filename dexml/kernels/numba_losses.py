"""Losses and their gradients over a slab of score rows, in a few passes while each row is in a core's own cache.

A function here overwrites each row of scores with G and gives a coefficient a, such that the gradient of the row's loss is
a·G: the coefficient is multiplied into the operands of the matrix products and costs no pass of its own. The rows are
float32 or bfloat16 (`half`), padded with −∞ to a multiple of 16.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from dexml.kernels import row_passes as passes

PIECE = 256  # vectors of 16 that are summed in float32 before float64 takes over


class Slab(NamedTuple):
    """Scores (R, L+) in a flat array of float32 or bfloat16 bits, and the positives of its rows."""

    scores: npt.NDArray[Any]  # (R, L+)
    half: bool
    width: int  # L, less than L+
    indptr: npt.NDArray[np.int64]  # (R+1), the first of them anywhere
    indices: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float64]  # (nnz) the weight of each positive in its row; 1/|P| unless drawn
    values: npt.NDArray[np.float64]  # (R) out: the loss of the row
    coefficients: npt.NDArray[np.float64]  # (R) out: a


@njit(cache=True)
def _pass(kind: int, address: int, half: bool, vectors: int, scale: float, offset: float, work: Any) -> tuple[float, float]:
    """Run pass `kind` over a row: 0 maximum, 1 exp, 2 exp without writing, 3 slopes, 4 slopes without writing, 5 softplus."""
    sums, size, first, second = work.ctypes.data, 32 if half else 64, 0.0, 0.0
    s, o = np.float32(scale), np.float32(offset)
    if kind == 0:
        first = -np.inf
    for start in range(0, vectors, PIECE):
        number, here = min(PIECE, vectors - start), address + start * size
        work[:32] = -np.inf if kind == 0 else 0.0
        if kind == 0:
            passes.maximum_16(here, number, s, o, sums) if half else passes.maximum_32(here, number, s, o, sums)
            first = max(first, np.max(work[:16]))
        elif kind == 1:
            passes.exp_16(here, number, s, o, sums) if half else passes.exp_32(here, number, s, o, sums)
        elif kind == 2:
            passes.exp_sum_16(here, number, s, o, sums) if half else passes.exp_sum_32(here, number, s, o, sums)
        elif kind == 3:
            passes.slope_16(here, number, s, o, sums) if half else passes.slope_32(here, number, s, o, sums)
        elif kind == 4:
            passes.slope_sum_16(here, number, s, o, sums) if half else passes.slope_sum_32(here, number, s, o, sums)
        else:
            passes.softplus_16(here, number, s, o, sums) if half else passes.softplus_32(here, number, s, o, sums)
        if kind != 0:
            for lane in range(16):
                first += work[lane]
                second += work[16 + lane]
    return first, second


@njit(cache=True)
def _read(row: Any, half: bool, place: int, single: Any) -> float:
    if half:
        single.view(np.int32)[0] = np.int32(row[place]) << 16
    else:
        single.view(np.int32)[0] = row[place]
    return np.float64(single[0])


@njit(cache=True)
def _write(row: Any, half: bool, place: int, value: float, single: Any) -> None:
    single[0] = value
    bits = single.view(np.int32)[0]
    if half and math.isfinite(value):
        bits = np.int32((np.int64(bits) + 0x7FFF + ((bits >> 16) & 1)) >> 16)
    elif half:
        bits = bits >> 16
    row[place] = bits


@njit(cache=True)
def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@njit(cache=True)
def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@njit(cache=True)
def _gather(slab: Slab, n: int, single: Any) -> Any:
    """Return the scores of the positives of a row."""
    first, last = slab.indptr[n], slab.indptr[n + 1]
    found = np.empty(last - first)
    for p in range(first, last):
        found[p - first] = _read(slab.scores[n], slab.half, slab.indices[p], single)
    return found


@njit(cache=True, parallel=True)
def decoupled_softmax(slab: Slab) -> None:
    """−Σ_p share_p [s_p − log(e^{s_p} + Σ_negatives e^{s_n})]; positives leave the sum before it is taken."""
    # Named here because numba loses what a parallel loop writes through a field.
    values, coefficients = slab.values, slab.coefficients
    for n in prange(len(values)):
        work, single = np.empty(32, np.float32), np.empty(1, np.float32)
        row, half, vectors = slab.scores[n], slab.half, slab.scores.shape[1] // 16
        first, of_positives = slab.indptr[n], _gather(slab, n, single)
        values[n], coefficients[n] = 0.0, 0.0
        for p in range(len(of_positives)):
            _write(row, half, slab.indices[first + p], -np.inf, single)
        top, _ = _pass(0, row.ctypes.data, half, vectors, 1.0, 0.0, work)
        top = top if math.isfinite(top) else 0.0
        total, _ = _pass(1, row.ctypes.data, half, vectors, 1.0, -top, work)
        if len(of_positives) == 0 or total <= 0:
            continue
        log_total, pulled = top + math.log(total), 0.0
        pulls = np.empty(len(of_positives))
        for p in range(len(of_positives)):
            gap, share = log_total - of_positives[p], slab.shares[first + p]
            values[n] += share * _softplus(gap)
            pulls[p] = share * _sigmoid(gap)
            pulled += pulls[p]
        coefficients[n] = pulled / total
        for p in range(len(of_positives)):
            _write(row, half, slab.indices[first + p], -pulls[p] * total / max(pulled, 1e-300), single)


@njit(cache=True, parallel=True)
def softmax(slab: Slab) -> None:
    """−Σ_p [s_p − log Σ_j e^{s_j}]."""
    # Named here because numba loses what a parallel loop writes through a field.
    values, coefficients = slab.values, slab.coefficients
    for n in prange(len(values)):
        work, single = np.empty(32, np.float32), np.empty(1, np.float32)
        row, half, vectors = slab.scores[n], slab.half, slab.scores.shape[1] // 16
        first, of_positives = slab.indptr[n], _gather(slab, n, single)
        top, _ = _pass(0, row.ctypes.data, half, vectors, 1.0, 0.0, work)
        total, _ = _pass(1, row.ctypes.data, half, vectors, 1.0, -top, work)
        number = len(of_positives)
        values[n], coefficients[n] = number * (top + math.log(total)) - np.sum(of_positives), number / total
        for p in range(number):
            value = math.exp(of_positives[p] - top) - total / number
            _write(row, half, slab.indices[first + p], value, single)


@njit(cache=True, parallel=True)
def binary_cross_entropy(slab: Slab) -> None:
    """(1/L) [Σ_j log(1 + e^{s_j}) − Σ_p s_p], 0 for a row without positives."""
    # Named here because numba loses what a parallel loop writes through a field.
    values, coefficients = slab.values, slab.coefficients
    for n in prange(len(values)):
        work, single = np.empty(32, np.float32), np.empty(1, np.float32)
        row, half, vectors = slab.scores[n], slab.half, slab.scores.shape[1] // 16
        first, of_positives = slab.indptr[n], _gather(slab, n, single)
        total, _ = _pass(5, row.ctypes.data, half, vectors, 1.0, 0.0, work)
        labelled = 1.0 if len(of_positives) else 0.0
        values[n] = labelled * (total - np.sum(of_positives)) / slab.width
        coefficients[n] = labelled / slab.width
        for p in range(len(of_positives)):
            _write(row, half, slab.indices[first + p], -_sigmoid(-of_positives[p]), single)


@njit(cache=True)
def _threshold(address: int, half: bool, vectors: int, count: int, k: int, alpha: float, top: float, work: Any) -> float:
    """Return t with Σ_j σ(α(s_j + t)) = k < L: Newton steps on log Σσ from a lower bound, in a bracket.

    σ(z) ≤ e^z, so that log k − log Σ e^{αs}, over α, lies below t and is close to it while sigmoids are in their tail.
    """
    mass, _ = _pass(2, address, half, vectors, alpha, -alpha * top, work)
    low = (math.log(k) - math.log(mass)) / alpha - top
    high, t = np.inf, low
    for _ in range(60):
        total, slope = _pass(4, address, half, vectors, alpha, alpha * t, work)
        if total <= k:
            low = t
        else:
            high = t
        if not slope > 0:
            step = 1 / alpha
        else:
            step = math.log(k / total) * total / (slope * alpha)
        following = t + step
        if not low <= following <= high:
            following = (low + high) / 2 if high < np.inf else low + 2 * max(abs(step), 1 / alpha)
        done = abs(following - t) <= 1e-6 * (1 / alpha + abs(t) * 1e-1)
        t = following
        if done:
            break
    return t


@njit(cache=True, parallel=True)
def soft_topk(slab: Slab, k: int, alpha: float) -> None:
    """−Σ_p share_p log σ(α(s_p + t)), Σ_j σ(α(s_j + t)) = k < L, differentiated through t (METHODS §1)."""
    # Named here because numba loses what a parallel loop writes through a field.
    values, coefficients = slab.values, slab.coefficients
    for n in prange(len(values)):
        work, single = np.empty(32, np.float32), np.empty(1, np.float32)
        row, half, vectors = slab.scores[n], slab.half, slab.scores.shape[1] // 16
        address, first, of_positives = row.ctypes.data, slab.indptr[n], _gather(slab, n, single)
        values[n], coefficients[n] = 0.0, 0.0
        if len(of_positives) == 0:
            row[:] = 0
            continue
        top, _ = _pass(0, address, half, vectors, 1.0, 0.0, work)
        t = _threshold(address, half, vectors, slab.width, k, alpha, top, work)
        pulls, pulled = np.empty(len(of_positives)), 0.0
        for p in range(len(of_positives)):
            z, share = alpha * (of_positives[p] + t), slab.shares[first + p]
            values[n] += share * _softplus(-z)
            pulls[p] = -share * alpha * _sigmoid(-z)
            pulled += pulls[p]
        _, slopes = _pass(3, address, half, vectors, alpha, alpha * t, work)
        solid = slopes > 1e-30 and pulled < 0  # a saturated row moves no threshold
        if solid:
            coefficients[n] = -pulled / slopes
        else:
            coefficients[n] = 1.0
            row[:] = 0
        for p in range(len(of_positives)):
            z = alpha * (of_positives[p] + t)
            own = _sigmoid(z) * _sigmoid(-z) - pulls[p] * slopes / pulled if solid else pulls[p]
            _write(row, half, slab.indices[first + p], own, single)
