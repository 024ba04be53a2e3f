"""One pass over the labels: scores of a block, while in cache, feed a threshold-filtered list of candidates and Σ e^{s/τ}.

Scores come from an int16 copy or from a float32 product; either way each differs from the true score by at most a known
`error`, so that a label 2·error below the k-th best score of the moment cannot be among the best k. What remains is scored
again in float64 from the float32 rows: the answer is exact by construction, equal scores in the order of the labels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from dexml.kernels.instructions import (
    absorb,
    byte_row_by_1,
    byte_row_by_4,
    lane_maximum,
    lowest_bit,
    prefetch,
    row_by_1,
    row_by_4,
    tile_of_16,
    tile_of_32,
)

AHEAD = 32  # rows that are asked for before their turn


class State(NamedTuple):
    """What a pass has seen: P parts of the labels, B rows, C candidates at most."""

    scores: npt.NDArray[np.float32]  # (P, B, C) of the candidates, in the order of the labels
    ids: npt.NDArray[np.int32]  # (P, B, C)
    counts: npt.NDArray[np.int64]  # (P, B)
    bars: npt.NDArray[np.float32]  # (P, B) below which no score can matter
    top: npt.NDArray[np.float32]  # (P, B) what is taken off the exponents
    total: npt.NDArray[np.float64]  # (P, B) Σ_j e^{s_j/τ − top}
    square: npt.NDArray[np.float64]  # (P, B) Σ_j e^{2(s_j/τ − top)}
    moment: npt.NDArray[np.float64]  # (P, B) Σ_j s_j e^{s_j/τ − top}


class Call(NamedTuple):
    """What a pass is asked: rows (B, D) and labels (L, D) float32, and the largest `error` (B) of a score."""

    rows: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    error: npt.NDArray[np.float32]
    k: int
    scale: float  # 1/τ
    block: int  # labels whose scores are in cache at once, a multiple of 16
    unified: bool  # `top` bounds every s/τ beforehand and need not be raised


def new_state(
    parts: int, batch: int, room: int, top: npt.NDArray[np.float32] | None, bars: npt.NDArray[np.float32] | None = None
) -> State:
    """Return an empty state with `room` for candidates.

    `top` (B) is the unified maximum, where there is one, and `bars` (B) what no score may fall below.
    """
    shape = (parts, batch)
    return State(
        np.empty((*shape, room), np.float32),
        np.empty((*shape, room), np.int32),
        np.zeros(shape, np.int64),
        np.full(shape, -np.inf, np.float32) if bars is None else np.repeat(bars[None], parts, 0),
        np.full(shape, -np.inf, np.float32) if top is None else np.repeat(top[None], parts, 0),
        np.zeros(shape),
        np.zeros(shape),
        np.zeros(shape),
    )


@njit(cache=True, fastmath={"contract", "reassoc", "nsz"})
def exact_score(query: Any, label: Any) -> float:
    """Return ⟨query, label⟩ in float64."""
    total = 0.0
    for d in range(len(query)):
        total += np.float64(query[d]) * np.float64(label[d])
    return total


@njit(cache=True)
def exact_scores(query: Any, labels: Any, ids: Any, out: Any) -> None:
    """Write ⟨query, labels[id]⟩ float64 for each id, −∞ for −1, and ask for the rows some ids ahead of their turn."""
    start, stride = labels.ctypes.data, 4 * labels.shape[1]
    for n in range(len(ids)):
        if n + 8 < len(ids):
            prefetch(start + max(ids[n + 8], 0) * stride, (stride + 63) // 64)
        out[n] = exact_score(query, labels[ids[n]]) if ids[n] >= 0 else -np.inf


@njit(cache=True, parallel=True, fastmath={"contract", "reassoc", "nsz"})
def few_products(left: Any, right: Any, out: Any) -> None:
    """Write float32 left (B, D) @ right (S, D).T into `out` (B, S): for a handful of rows, which torch multiplies slowly."""
    chunks = (len(right) + 63) // 64
    for chunk in prange(chunks):
        first = int(64 * np.int64(chunk))
        for n in range(first, min(first + 64, len(right))):
            for b in range(len(left)):
                total = np.float32(0)
                for d in range(right.shape[1]):
                    total += left[b, d] * right[n, d]
                out[b, n] = total


@njit(cache=True)
def kth_largest(values: Any, k: int) -> Any:
    """Return the k-th largest of `values`, by Hoare's selection; numpy's own takes numba five seconds to compile."""
    work = values.copy()
    low, high, place = 0, len(work) - 1, len(work) - k
    while low < high:
        pivot = work[(low + high) // 2]
        left, right = low, high
        while left <= right:
            while work[left] < pivot:
                left += 1
            while work[right] > pivot:
                right -= 1
            if left <= right:
                work[left], work[right] = work[right], work[left]
                left += 1
                right -= 1
        if place <= right:
            high = right
        elif place >= left:
            low = left
        else:
            break
    return work[place]


@njit(cache=True)
def first_bars(call: Call, products: Any, count: int, bars: Any) -> None:
    """Set `bars` (B) below which no score can be among the best k, from those of `count` sampled labels.

    `products` (2B, S+) are the sampled scores, which become −inf beyond `count`, and B rows of something else.
    """
    for row in range(len(bars)):
        products[row, count:] = -np.inf
        bars[row] = -np.inf
        if call.k <= count:
            bars[row] = kth_largest(products[row], call.k) - 2 * call.error[row]


@njit(cache=True)
def best_of(exact: Any, k: int) -> Any:
    """Return the places of the k best, equal ones in the order given."""
    if len(exact) <= k:
        return np.argsort(-exact, kind="mergesort")
    kept = np.flatnonzero(exact >= kth_largest(exact, k))  # sorting all of them takes longer than scoring them
    return kept[np.argsort(-exact[kept], kind="mergesort")][:k]


@njit(cache=True)
def _compact(call: Call, state: State, part: int, row: int) -> None:
    """Make room: drop what is neither among the best half nor possibly among the best k.

    When that is not enough, score the rest exactly and keep k. The best half serves the log-partition (`settle`).
    """
    scores, ids = state.scores[part, row], state.ids[part, row]
    count = state.counts[part, row]
    kth, half = kth_largest(scores[:count], call.k), kth_largest(scores[:count], count // 2)
    bar = max(state.bars[part, row], min(half, np.float32(kth - 2 * call.error[row])))
    kept = 0
    for n in range(count):
        if scores[n] >= bar:
            scores[kept], ids[kept] = scores[n], ids[n]
            kept += 1
    if 4 * kept > 3 * len(scores):
        exact = np.empty(kept)
        exact_scores(call.rows[row], call.labels, ids[:kept], exact)
        best = best_of(exact, call.k)
        bar = max(bar, np.float32(exact[best[-1]] - call.error[row]))
        best = np.sort(best)
        for n in range(call.k):
            scores[n], ids[n] = scores[best[n]], ids[best[n]]
        kept = call.k
    state.counts[part, row], state.bars[part, row] = kept, bar


@njit(cache=True, inline="always")
def _push(call: Call, state: State, part: int, row: int, score: float, label: int) -> None:
    if score >= state.bars[part, row]:
        count = state.counts[part, row]
        state.scores[part, row, count], state.ids[part, row, count] = score, label
        state.counts[part, row] = count + 1
        if count + 1 == state.scores.shape[2]:
            _compact(call, state, part, row)


@njit(cache=True)
def _raise_top(state: State, part: int, row: int, peak: float) -> None:
    """Take a larger maximum off the exponents, and rescale what is already summed."""
    if peak > state.top[part, row]:
        factor = math.exp(np.float64(state.top[part, row]) - np.float64(np.float32(peak)))
        state.top[part, row] = peak
        state.total[part, row] *= factor
        state.square[part, row] *= factor * factor
        state.moment[part, row] *= factor


@njit(cache=True)
def take_row(call: Call, state: State, part: int, row: int, scores: Any, first: int, count: int, work: Any, flags: Any) -> None:
    """Absorb the scores of labels first … first + count of one row; `scores` has room up to the next multiple of 16."""
    whole = (count + 15) // 16
    scores[count : 16 * whole] = -np.inf
    address, here = scores.ctypes.data, work.ctypes.data
    if not call.unified:
        work[:16] = -np.inf
        lane_maximum(address, whole, 64, here)
        _raise_top(state, part, row, np.max(work[:16]) * call.scale)
    work[:16], work[16:32], work[32:] = state.top[part, row], state.bars[part, row], 0
    if absorb(address, whole, 64, np.float32(call.scale), here, flags.ctypes.data):
        for n in range(whole):
            bits = np.int32(flags[n])
            while bits:
                place = 16 * n + lowest_bit(bits)
                _push(call, state, part, row, scores[place], first + place)
                bits &= bits - np.int32(1)
    state.total[part, row] += np.sum(work[32:48])
    state.square[part, row] += np.sum(work[48:64])
    state.moment[part, row] += np.sum(work[64:])


@njit(cache=True)
def _take_lanes(
    call: Call, state: State, part: int, row: int, scores: Any, lane: int, first: int, count: int, work: Any, flags: Any
) -> None:
    """Absorb a block of scores (labels, lanes) for the 16 rows from `row` on, whose scores start at `lane`."""
    step, address, here = 4 * scores.shape[1], scores.ctypes.data + 4 * lane, work.ctypes.data
    rows = min(16, state.counts.shape[1] - row)
    if not call.unified:
        work[:16] = -np.inf
        lane_maximum(address, count, step, here)
        for n in range(rows):
            _raise_top(state, part, row + n, work[n] * call.scale)
    work[:16], work[16:32], work[32:] = 0, np.inf, 0
    for n in range(rows):
        work[n], work[16 + n] = state.top[part, row + n], state.bars[part, row + n]
    if absorb(address, count, step, np.float32(call.scale), here, flags.ctypes.data):
        for n in range(count):
            bits = np.int32(flags[n])
            while bits:
                r = lowest_bit(bits)
                _push(call, state, part, row + r, scores[n, lane + r], first + n)
                bits &= bits - np.int32(1)
    for n in range(rows):
        state.total[part, row + n] += work[32 + n]
        state.square[part, row + n] += work[48 + n]
        state.moment[part, row + n] += work[64 + n]


@njit(cache=True, parallel=True)
def scan_tiles(call: Call, state: State, copy: Any, packed: Any, units: Any) -> None:
    """Scan the int16 `copy` (L+, D+) with `packed` (G, D+/2, W, 2) queries of `units` (G·W); lanes run over queries."""
    parts, batch = state.counts.shape
    count, pairs, width = len(call.labels), packed.shape[1], packed.shape[2]
    size, stride = call.block, 2 * copy.shape[1]
    blocks = (count + size - 1) // size
    for part in prange(parts):
        scores, work, flags = np.empty((size, width), np.float32), np.empty(80, np.float32), np.empty(size, np.uint16)
        out = scores.ctypes.data
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            first = size * block
            filled = min(size, count - first)
            for group in range(len(packed)):
                queries = packed.ctypes.data + group * pairs * width * 4
                unit = units.ctypes.data + group * width * 4
                if width == 32:
                    for n in range(0, filled, 8):
                        if group == 0:
                            prefetch(copy.ctypes.data + (first + n + AHEAD) * stride, stride // 8)
                        tile_of_32(copy.ctypes.data + (first + n) * stride, stride, queries, pairs, unit, out + 128 * n)
                else:
                    for n in range(0, filled, 16):
                        prefetch(copy.ctypes.data + (first + n + AHEAD) * stride, stride // 4)
                        tile_of_16(copy.ctypes.data + (first + n) * stride, stride, queries, pairs, unit, out + 64 * n)
                for lane in range(0, min(width, batch - group * width), 16):
                    _take_lanes(
                        call, state, np.int64(part), np.int64(group * width + lane), scores, lane, first, filled, work, flags
                    )


@njit(cache=True, inline="always")
def _row(row: int, base: int, pieces: int, unit: int, out: int, wide: int, single: bool) -> None:
    if single:
        row_by_1(row, base, pieces, unit, out, wide)
    else:
        row_by_4(row, base, pieces, unit, out, wide)


@njit(cache=True, inline="always")
def _byte_row(row: int, base: int, pieces: int, unit: int, out: int, wide: int, single: bool) -> None:
    if single:
        byte_row_by_1(row, base, pieces, unit, out, wide)
    else:
        byte_row_by_4(row, base, pieces, unit, out, wide)


@njit(cache=True, parallel=True)
def scan_rows(call: Call, state: State, copy: Any, steps: Any, vectors: Any, units: Any) -> None:
    """Scan the `copy` (L+, D+) with one or four `vectors` and their `units`, lanes running along the dimension.

    The copy is int16, or int8 whose row n counts in `steps[n]`.
    """
    parts, batch = state.counts.shape
    count, stride, single = len(call.labels), copy.itemsize * copy.shape[1], len(vectors) == 1
    size = 4 * call.block
    blocks = (count + size - 1) // size
    for part in prange(parts):
        scores = np.empty((len(vectors), size), np.float32)
        work, flags = np.empty(80, np.float32), np.empty(size // 16, np.uint16)
        out, wide, pieces, base = scores.ctypes.data, 4 * size, copy.shape[1] // 32, vectors.ctypes.data
        unit = units.ctypes.data
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            first = size * block
            filled = min(size, count - first)
            start = copy.ctypes.data + first * stride
            if copy.itemsize == 1:
                for n in range(filled):
                    _byte_row(start + n * stride, base, pieces, unit, out + 4 * n, wide, single)
                scores[:, :filled] *= steps[first : first + filled]
            else:
                for n in range(filled):
                    _row(start + n * stride, base, pieces, unit, out + 4 * n, wide, single)
            for row in range(batch):
                take_row(call, state, np.int64(part), np.int64(row), scores[row], first, filled, work, flags)


@njit(cache=True, parallel=True)
def absorb_product(call: Call, state: State, product: Any, first: int, count: int) -> None:
    """Absorb float32 scores (B, at least `count` rounded up to 16) of the labels from `first` on."""
    for row in prange(len(product)):
        work, flags = np.empty(80, np.float32), np.empty((count + 15) // 16, np.uint16)
        # prange counts in uint64 where it is parallel: without the casts everything below is compiled twice.
        take_row(call, state, np.int64(0), np.int64(row), product[np.int64(row)], first, count, work, flags)
