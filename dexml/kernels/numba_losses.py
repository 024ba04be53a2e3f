"""Functions of score rows and their gradients over a slab, in a few passes while each row is in a core's own cache.

A function here gives each row of scores a value, overwrites the row with G and gives a coefficient a, such that the gradient
of the value is a·G: the coefficient is multiplied into the operands of the matrix products and costs no pass of its own. The
rows are float32 or bfloat16 (`half`), padded with −∞ to a multiple of 16.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from dexml.kernels import row_passes as passes

PIECE = 256  # vectors of 16 that are summed in float32 before float64 takes over
SOLID = 1e-30  # Σσ(1 − σ) below which a row is saturated and moves no threshold


class Slab(NamedTuple):
    """Scores (R, L+) in a flat array of float32 or bfloat16 bits, and the positives of its rows."""

    scores: npt.NDArray[Any]  # (R, L+)
    half: bool
    width: int  # L, less than L+
    indptr: npt.NDArray[np.int64]  # (R+1), the first of them anywhere
    indices: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float64]  # (nnz) the weight of each positive in its row; 1/|P| unless drawn
    values: npt.NDArray[np.float64]  # (R) out: the value of the row
    coefficients: npt.NDArray[np.float64]  # (R) out: a
    pulls: npt.NDArray[np.float64]  # (nnz) out: 1 − p of each positive; left alone where nothing stands against it


@njit(cache=True)
def _maximum(row: Any, half: bool, work: Any) -> float:
    """Return the largest score of a row, and NaN where one of them is no number."""
    address, vectors, size, top = row.ctypes.data, len(row) // 16, 32 if half else 64, -np.inf
    one, zero, sums = np.float32(1), np.float32(0), work.ctypes.data
    for start in range(0, vectors, PIECE):
        number, here = min(PIECE, vectors - start), address + start * size
        work[:32] = -np.inf
        passes.maximum_16(here, number, one, zero, sums) if half else passes.maximum_32(here, number, one, zero, sums)
        for lane in range(16):
            if math.isnan(work[16 + lane]):
                top = np.nan  # which stays: nothing is above it
            elif work[lane] > top:
                top = np.float64(work[lane])
    return float(top)


@njit(cache=True)
def _pass(kind: int, row: Any, half: bool, scale: float, offset: float, work: Any) -> tuple[float, float]:
    """Run pass `kind` over a row: 1 exp, 2 exp without writing, 3 slopes, 4 slopes without writing, 5 softplus, 6 hinge."""
    address, vectors, size = row.ctypes.data, len(row) // 16, 32 if half else 64
    sums, first, second = work.ctypes.data, 0.0, 0.0
    s, o = np.float32(scale), np.float32(offset)
    for start in range(0, vectors, PIECE):
        number, here = min(PIECE, vectors - start), address + start * size
        work[:32] = 0.0
        if kind == 1:
            passes.exp_16(here, number, s, o, sums) if half else passes.exp_32(here, number, s, o, sums)
        elif kind == 2:
            passes.exp_sum_16(here, number, s, o, sums) if half else passes.exp_sum_32(here, number, s, o, sums)
        elif kind == 3:
            passes.slope_16(here, number, s, o, sums) if half else passes.slope_32(here, number, s, o, sums)
        elif kind == 4:
            passes.slope_sum_16(here, number, s, o, sums) if half else passes.slope_sum_32(here, number, s, o, sums)
        elif kind == 5:
            passes.softplus_16(here, number, s, o, sums) if half else passes.softplus_32(here, number, s, o, sums)
        else:
            passes.hinge_16(here, number, s, o, sums) if half else passes.hinge_32(here, number, s, o, sums)
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
def _open(slab: Slab, n: int) -> Any:
    """Return row n, where its positives are, their scores and shares, and room for a pass and for a number."""
    row, first, last = slab.scores[n], slab.indptr[n], slab.indptr[n + 1]
    work, single = np.empty(32, np.float32), np.empty(1, np.float32)
    places, found = slab.indices[first:last], np.empty(last - first)
    for p in range(len(places)):
        found[p] = _read(row, slab.half, places[p], single)
    return row, places, found, slab.shares[first:last], work, single


@njit(cache=True)
def _of_negatives(row: Any, half: bool, places: Any, work: Any, single: Any) -> tuple[float, float]:
    """Overwrite a row with e^{s − top}, 0 at `places`, and return top and the sum, NaN for a row that is not finite.

    Top is 0 where nothing is left.
    """
    for place in places:
        _write(row, half, place, -np.inf, single)
    top = _maximum(row, half, work)
    top = 0.0 if top == -np.inf else top
    total, _ = _pass(1, row, half, 1.0, -top, work)
    return top, total if math.isfinite(top) else np.nan


# In the functions below what is written has names of its own because numba loses what a parallel loop writes through a field.


@njit(cache=True, parallel=True)
def negative_lse(slab: Slab) -> None:
    """Log Σ_negatives e^{s_n}, −∞ without negatives; positives leave the sum before it is taken."""
    values, coefficients = slab.values, slab.coefficients
    for n in prange(len(values)):
        row, places, _, _, work, single = _open(slab, n)
        top, total = _of_negatives(row, slab.half, places, work, single)
        values[n], coefficients[n] = -np.inf, 0.0
        if total != 0:
            values[n], coefficients[n] = top + math.log(total), 1 / total


@njit(cache=True, parallel=True)
def decoupled_softmax(slab: Slab) -> None:
    """−Σ_p share_p [s_p − log(e^{s_p} + Σ_negatives e^{s_n})]; positives leave the sum before it is taken."""
    values, coefficients, told = slab.values, slab.coefficients, slab.pulls
    for n in prange(len(values)):
        row, places, of_positives, shares, work, single = _open(slab, n)
        top, total = _of_negatives(row, slab.half, places, work, single)
        values[n], coefficients[n] = 0.0, 0.0
        if len(places) == 0 or total == 0:
            continue
        log_total, pulled = top + math.log(total), 0.0
        pulls = np.empty(len(places))
        for p in range(len(places)):
            gap = log_total - of_positives[p]
            values[n] += shares[p] * _softplus(gap)
            told[slab.indptr[n] + p] = _sigmoid(gap)
            pulls[p] = shares[p] * _sigmoid(gap)
            pulled += pulls[p]
        coefficients[n] = pulled / total
        for p in range(len(places)):
            _write(row, slab.half, places[p], -pulls[p] * total / max(pulled, 1e-300), single)


@njit(cache=True, parallel=True)
def softmax(slab: Slab) -> None:
    """−Σ_p [s_p − log Σ_j e^{s_j}]."""
    values, coefficients, told = slab.values, slab.coefficients, slab.pulls
    for n in prange(len(values)):
        row, places, of_positives, _, work, single = _open(slab, n)
        top = _maximum(row, slab.half, work)
        total, _ = _pass(1, row, slab.half, 1.0, -top, work)
        number = len(places)
        values[n], coefficients[n] = number * (top + math.log(total)) - np.sum(of_positives), number / total
        for p in range(number):
            own = math.exp(of_positives[p] - top)
            told[slab.indptr[n] + p] = (total - own) / total
            _write(row, slab.half, places[p], own - total / number, single)


@njit(cache=True, parallel=True)
def binary_cross_entropy(slab: Slab) -> None:
    """(1/L) [Σ_j log(1 + e^{s_j}) − Σ_p s_p], 0 for a row without positives."""
    values, coefficients, told = slab.values, slab.coefficients, slab.pulls
    for n in prange(len(values)):
        row, places, of_positives, _, work, single = _open(slab, n)
        total, _ = _pass(5, row, slab.half, 1.0, 0.0, work)
        labelled = 1.0 if len(places) else 0.0
        values[n] = labelled * (total - np.sum(of_positives)) / slab.width
        coefficients[n] = labelled / slab.width
        for p in range(len(places)):
            told[slab.indptr[n] + p] = _sigmoid(-of_positives[p])
            _write(row, slab.half, places[p], -_sigmoid(-of_positives[p]), single)


@njit(cache=True, parallel=True)
def squared_hinge(slab: Slab, boundary: float, weight: float) -> None:
    """(1/L) [Σ_negatives max(0, 1 + o)² + weight·Σ_p max(0, 1 − o_p)²], o = s − boundary, 0 for a row without positives."""
    values, coefficients = slab.values, slab.coefficients
    for n in prange(len(values)):
        row, places, of_positives, _, work, single = _open(slab, n)
        for place in places:
            _write(row, slab.half, place, -np.inf, single)  # max(0, −∞) = 0
        total, _ = _pass(6, row, slab.half, 1.0, 1.0 - boundary, work)
        labelled = 1.0 if len(places) else 0.0
        for p in range(len(places)):
            gap = 1.0 + boundary - of_positives[p]
            if not gap <= 0:  # NaN too
                total += weight * gap * gap
                _write(row, slab.half, places[p], -weight * gap, single)
        values[n] = labelled * total / slab.width
        coefficients[n] = labelled * 2 / slab.width


@njit(cache=True)
def _threshold(row: Any, half: bool, k: int, alpha: float, work: Any) -> float:
    """Return t with Σ_j σ(α(s_j + t)) = k < L: Newton steps on log Σσ from a lower bound, in a bracket.

    σ(z) ≤ e^z, so that log k − log Σ e^{αs}, over α, lies below t and is close to it while sigmoids are in their tail. NaN
    for a row that is not finite.
    """
    top = _maximum(row, half, work)
    if not math.isfinite(top):
        return math.nan
    mass, _ = _pass(2, row, half, alpha, -alpha * top, work)
    low = (math.log(k) - math.log(mass)) / alpha - top
    high: float = np.inf
    t: float = low
    for _ in range(60):
        total, slope = _pass(4, row, half, alpha, alpha * t, work)
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
def topk_threshold(slab: Slab, k: int, alpha: float) -> None:
    """T with Σ_j σ(α(s_j + t)) = k < L; ∂t/∂s_j = −v_j/Σv, v = σ(1 − σ), and 0 where all sigmoids are saturated."""
    values, coefficients = slab.values, slab.coefficients
    for n in prange(len(values)):
        row, _, _, _, work, _ = _open(slab, n)
        t = _threshold(row, slab.half, k, alpha, work)
        _, slopes = _pass(3, row, slab.half, alpha, alpha * t, work)
        values[n], coefficients[n] = t, -1 / slopes if slopes > SOLID else 0.0


@njit(cache=True, parallel=True)
def soft_topk(slab: Slab, k: int, alpha: float) -> None:
    """−Σ_p share_p log σ(α(s_p + t)), Σ_j σ(α(s_j + t)) = k < L, differentiated through t (METHODS §1)."""
    values, coefficients, told = slab.values, slab.coefficients, slab.pulls
    for n in prange(len(values)):
        row, places, of_positives, shares, work, single = _open(slab, n)
        values[n], coefficients[n] = 0.0, 0.0
        if len(places) == 0:
            row[:] = 0
            continue
        t = _threshold(row, slab.half, k, alpha, work)
        pulls, pulled = np.empty(len(places)), 0.0
        for p in range(len(places)):
            z = alpha * (of_positives[p] + t)
            values[n] += shares[p] * _softplus(-z)
            told[slab.indptr[n] + p] = _sigmoid(-z)
            pulls[p] = -shares[p] * alpha * _sigmoid(-z)
            pulled += pulls[p]
        _, slopes = _pass(3, row, slab.half, alpha, alpha * t, work)
        solid = slopes > SOLID and pulled < 0
        if solid:
            coefficients[n] = -pulled / slopes
        else:
            coefficients[n] = 1.0
            row[:] = 0
        for p in range(len(places)):
            z = alpha * (of_positives[p] + t)
            own = _sigmoid(z) * _sigmoid(-z) - pulls[p] * slopes / pulled if solid else pulls[p]
            _write(row, slab.half, places[p], own, single)


@njit(cache=True, parallel=True)
def stablemax(slab: Slab) -> None:
    """−Σ_p share_p log [S(s_p) / (S(s_p) + Σ_negatives S(s_n))], S(x) = 1 + x, or 1/(1 − x) for x < 0."""
    values, coefficients, told = slab.values, slab.coefficients, slab.pulls
    for n in prange(len(values)):
        row, places, of_positives, shares, _, single = _open(slab, n)
        for place in places:
            _write(row, slab.half, place, -np.inf, single)
        total = 0.0
        for place in range(len(row)):
            score = _read(row, slab.half, place, single)
            inverse = 1 / (1 + abs(score))  # 0 where nothing is
            total += 1 + score if score >= 0 else inverse
            _write(row, slab.half, place, 1.0 if score >= 0 else inverse * inverse, single)
        values[n], coefficients[n] = 0.0, 0.0
        if len(places) == 0 or len(places) == slab.width:
            continue
        pulled = 0.0
        pulls = np.empty(len(places))
        for p in range(len(places)):
            score = of_positives[p]
            gap = math.log(total) - math.copysign(math.log1p(abs(score)), score) + 0 * score  # NaN of what is not finite
            values[n] += shares[p] * _softplus(gap)
            told[slab.indptr[n] + p] = _sigmoid(gap)
            pulls[p] = shares[p] * _sigmoid(gap)
            pulled += pulls[p]
        coefficients[n] = pulled / total
        for p in range(len(places)):
            own = pulls[p] / (1 + abs(of_positives[p]))
            _write(row, slab.half, places[p], -own * total / max(pulled, 1e-300), single)
