"""Softmax over rows on the CPU: two passes over memory where scores and result exceed the cache, three where they fit.

**Two passes** (Dukhan and Ablavatski, 2020). The sum of a row is a pair total·2^exponent, so that no maximum need be known:
one pass sums, one pass writes quotients. Scores are summed block by block under the exponent of the largest so far; a block
that rises far above it is summed again under its own.
**Three passes**. The maximum, then 2^(w − exponent) written and summed, then multiples of it: half of the exponentials, where
scores and result stay in the cache. The form that computes the powers again (RECOMPUTED) moves less memory out of cache; it
is here to be measured against.

Scores of which |s/τ| passes 180,000 have too little fraction left in s·log₂e/τ. There the float32 difference to the largest
score is exact wherever the answer is not 0 (Sterbenz), so that those rows are shifted by their largest score.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from dexml.kernels.calibration import known
from dexml.kernels.exponentials import (
    REACH,
    largest,
    multiples,
    multiples_streamed,
    pair_sum,
    power_sum,
    powers,
    quotients,
    quotients_streamed,
    streams_done,
)
from dexml.kernels.instructions import LANES

BLOCK = 2048  # scores summed in float32: 32 per lane
STRETCH = 1 << 14  # scores between two steps back: a pass that runs from the end to the start of a row does so in these
ROOM = 64.0  # by how many powers of two a block may rise above the exponent of its sum
LIFT = 32.0  # three passes keep 2^(w − exponent + 32), so that what is a normal float32 in the end is one in between
ALONE = 1 << 15  # scores for which waking a second thread costs more than it gains
HUGE = 1 << 20  # scores from which a result is worth huge pages
BUFFER = 1 << 20  # scores up to which a row's powers have a buffer
SHORT = 2048  # scores in a row below which three passes win in any case: the row stays in the first cache
TWO, THREE, RECOMPUTED = range(3)
TEMPERATURES = (1e-30, 1e30)  # between which log₂e/τ is two normal float32
_LOG2E = 1.4426950408889634

# None: what was measured on this machine, or what its caches suggest. Both may be set, and are read at each call.
CROSSOVER: int | None = None  # scores of a call, all rows, from which on two passes are used
STREAMING: int | None = None  # scores of a call from which on its result is stored past the caches


@cache
def cache_bytes(level: int) -> int:
    """Return the size of this machine's data cache of a level (1, 2, 3), as the system tells, or a common size."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, found, size = ((index / name).read_text(encoding="ascii").strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction" and int(found) == level and size.endswith("K"):
            return int(size[:-1]) << 10
    return (32 << 10, 1 << 20, 16 << 20)[level - 1]


def crossover() -> int:
    """Return the scores of a call from which on two passes are used: they and their result fill half of the last cache.

    Below, three passes are 1.2 times as fast. Above, two are 1.3 to 1.5 times as fast, however short the rows (down to
    SHORT): the pass for the maximum waits for memory and computes next to nothing.
    """
    return CROSSOVER if CROSSOVER is not None else known().softmax_two_passes_from or cache_bytes(3) // 16


def streaming() -> int:
    """Return the scores of a call from which on its result is stored past the caches: it alone would fill the last one."""
    return STREAMING if STREAMING is not None else cache_bytes(3) // 4


@njit(cache=True)
def _numbers(scale: float) -> tuple[Any, Any, Any]:
    """Return log₂e/τ as two float32, and the score below which all are alike."""
    high = np.float32(scale)
    return high, np.float32(scale - high), np.float32(-REACH / scale)


@njit(cache=True)
def _pair(address: int, count: int, scale: float) -> tuple[float, float]:
    """Return Σ 2^w over a row, or a part of one, as (total, exponent); NaN where |w| passes REACH or a score is NaN."""
    high, low, lowest = _numbers(scale)
    shift = np.float32(0.0)
    # A first guess from a few scores, so that the first block is seldom summed twice; it must be that of some score.
    total, exponent = 0.0, max(-REACH, np.rint(np.float64(largest(address, min(count, 64))) * scale))
    if exponent > REACH:
        return np.nan, 0.0
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        place = address + 4 * start
        mass, rise = pair_sum(place, size, high, low, shift, lowest, np.float32(exponent))
        if rise > ROOM:
            exponent += rise
            if exponent > REACH:
                return np.nan, 0.0
            total *= 2.0**-rise
            mass, rise = pair_sum(place, size, high, low, shift, lowest, np.float32(exponent))
        total += mass
    return total, exponent


@njit(cache=True)
def _in_doubt(total: float, exponent: float) -> bool:
    """Return whether a row's pair says nothing: what stands at `lowest` for −∞ must be nothing beside the largest."""
    return total != total or exponent < 200.0 - REACH


@njit(cache=True)
def _known(address: int, count: int, scale: float, shift: Any, exponent: float) -> float:
    """Return Σ 2^(w − exponent) over a row, for the exponent of its largest score."""
    high, low, lowest = _numbers(scale)
    total = 0.0
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        total += power_sum(address + 4 * start, size, high, low, shift, lowest, np.float32(exponent))
    return total


@njit(cache=True)
def _from_top(top: Any, scale: float) -> tuple[Any, float]:
    """Return the shift of a row and the exponent of its sum, for its largest score."""
    w = np.float64(top) * scale
    if abs(w) <= REACH - 200.0:
        return np.float32(0.0), np.rint(w)
    return np.float32(top), 0.0


@njit(cache=True)
def _summed(address: int, count: int, scale: float, top: Any) -> tuple[float, float, Any]:
    """Return (total, exponent, shift) of a row whose largest score, NaNs left out, is `top`; total NaN where the answer is."""
    zero = np.float32(0.0)
    if top == np.inf:
        return np.nan, 0.0, zero
    if top == -np.inf:  # nothing, or NaNs alone
        return 0.0 * _known(address, count, scale, zero, -REACH), 0.0, zero
    shift, exponent = _from_top(top, scale)
    return _known(address, count, scale, shift, exponent), exponent, shift


@njit(cache=True)
def _divisor(total: float, exponent: float) -> tuple[Any, Any]:
    """Return (factor, exponent') with 2^w / (total·2^exponent) = factor·2^(w − exponent'), 1/2 < factor ≤ 1; 0 for 0.

    A total of NaN gives two NaNs: with its factor alone, the instruction that scales would turn +∞ into +∞.
    """
    if total != total:
        return np.float32(total), np.float32(total)
    if total == 0.0:
        return np.float32(0.0), np.float32(0.0)
    mantissa, power = math.frexp(total)
    return np.float32(0.5 / mantissa), np.float32(exponent + power - 1)


@njit(cache=True)
def _head(out: int, count: int) -> int:
    """Return how many of `count` float32 stand before the first address that is a multiple of 64."""
    return min(count, (-out // 4) % LANES)


@njit(cache=True)
def _quotients(address: int, out: int, count: int, scale: float, shift: Any, exponent: Any, factor: Any, stream: bool) -> None:
    """Write factor·2^(w − exponent), from the end to the start: what was read last is still in some cache."""
    high, low, lowest = _numbers(scale)
    head = _head(out, count)
    for block in range(-(-(count - head) // STRETCH) - 1, -2, -1):  # -1 is the head
        start = head + block * STRETCH if block >= 0 else 0
        size = min(STRETCH, count - start) if block >= 0 else head
        if stream and block >= 0:
            quotients_streamed(address + 4 * start, out + 4 * start, size, high, low, shift, lowest, exponent, factor)
        else:
            quotients(address + 4 * start, out + 4 * start, size, high, low, shift, lowest, exponent, factor)
    if stream:
        streams_done()


@njit(cache=True)
def _powers(address: int, out: int, count: int, scale: float, shift: Any, exponent: float) -> float:
    """Write 2^(w − exponent) and return their sum."""
    high, low, lowest = _numbers(scale)
    total = 0.0
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        place = 4 * start
        total += powers(address + place, out + place, size, high, low, shift, lowest, np.float32(exponent))
    return total


@njit(cache=True)
def _multiples(address: int, out: int, count: int, factor: Any, stream: bool) -> None:
    """Write factor·x, from the end to the start."""
    head = _head(out, count)
    for block in range(-(-(count - head) // STRETCH) - 1, -2, -1):  # -1 is the head
        start = head + block * STRETCH if block >= 0 else 0
        size = min(STRETCH, count - start) if block >= 0 else head
        if stream and block >= 0:
            multiples_streamed(address + 4 * start, out + 4 * start, size, factor)
        else:
            multiples(address + 4 * start, out + 4 * start, size, factor)
    if stream:
        streams_done()


@njit(cache=True)
def _largest(address: int, count: int) -> Any:
    """Return the largest score of a row, NaNs left out, from the end to the start: the sums begin where this ends."""
    top = np.float32(-np.inf)
    for block in range(-(-count // STRETCH) - 1, -1, -1):
        start = block * STRETCH
        top = max(top, largest(address + 4 * start, min(STRETCH, count - start)))
    return top


@njit(cache=True)
def _row_in_two(x: int, out: int, width: int, scale: float, stream: bool) -> None:
    shift = np.float32(0.0)
    total, exponent = _pair(x, width, scale)
    if _in_doubt(total, exponent):
        total, exponent, shift = _summed(x, width, scale, _largest(x, width))
    factor, base = _divisor(total, exponent)
    _quotients(x, out, width, scale, shift, base, factor, stream)


@njit(cache=True)
def _row_recomputed(x: int, out: int, width: int, scale: float, stream: bool) -> None:
    total, exponent, shift = _summed(x, width, scale, _largest(x, width))
    factor, base = _divisor(total, exponent)
    _quotients(x, out, width, scale, shift, base, factor, stream)


@njit(cache=True)
def _row_in_three(x: int, out: int, buffer: int, width: int, scale: float, stream: bool) -> None:
    top = _largest(x, width)
    if abs(top) == np.inf:
        _row_recomputed(x, out, width, scale, stream)
        return
    shift, exponent = _from_top(top, scale)
    total = _powers(x, buffer, width, scale, shift, exponent - LIFT)
    _multiples(buffer, out, width, np.float32(1.0 / total), stream)


@njit(cache=True)
def rows(kernel: int, x: int, x_step: int, out: int, first: int, last: int, width: int, scale: float, stream: bool) -> None:
    """Write the softmax of rows [first, last) of float32 scores, `x_step` bytes apart, to contiguous rows at `out`."""
    # Powers that are to be read again go where they stay in the cache; in `out` itself when that stays there.
    apart = stream and kernel == THREE and width < BUFFER
    buffer = np.empty(width if apart else 0, np.float32)
    for row in range(first, last):
        source, target = x + row * x_step, out + 4 * row * width
        if kernel == TWO:
            _row_in_two(source, target, width, scale, stream)
        elif kernel == THREE:
            _row_in_three(source, target, buffer.ctypes.data if apart else target, width, scale, stream)
        else:
            _row_recomputed(source, target, width, scale, stream)


@njit(cache=True, parallel=True)
def rows_in_parallel(
    kernel: int, x: int, x_step: int, out: int, count: int, width: int, scale: float, stream: bool, chunks: int
) -> None:
    """Write the softmax of `count` rows, `chunks` stretches of rows at a time."""
    for chunk in prange(chunks):
        rows(kernel, x, x_step, out, chunk * count // chunks, (chunk + 1) * count // chunks, width, scale, stream)


@njit(cache=True, parallel=True)
def split_row(kernel: int, x: int, out: int, width: int, scale: float, stream: bool, parts: int) -> None:
    """Write the softmax of one row, each part of it by a thread of its own."""
    step = -(-width // (LANES * parts)) * LANES
    counts = np.empty(parts, np.int64)
    tops, totals, exponents = np.empty(parts, np.float32), np.empty(parts), np.empty(parts)
    shifts = np.zeros(parts, np.float32)
    for part in range(parts):
        counts[part] = max(0, min(step, width - part * step))
    total, exponent = np.nan, 0.0
    if kernel == TWO:
        for part in prange(parts):
            totals[part], exponents[part] = _pair(x + 4 * part * step, counts[part], scale)
        exponent = exponents.max()
        total = (totals * 2.0 ** (exponents - exponent)).sum()
    if _in_doubt(total, exponent):
        for part in prange(parts):
            tops[part] = _largest(x + 4 * part * step, counts[part])
        top = tops.max()
        if kernel == THREE and abs(top) < np.inf:
            shift, exponent = _from_top(top, scale)
            for part in prange(parts):
                place = 4 * part * step
                totals[part] = _powers(x + place, out + place, counts[part], scale, shift, exponent - LIFT)
            multiple = np.float32(1.0 / totals.sum())
            for part in prange(parts):
                place = 4 * part * step
                _multiples(out + place, out + place, counts[part], multiple, stream)
            return
        for part in prange(parts):
            totals[part], exponents[part], shifts[part] = _summed(x + 4 * part * step, counts[part], scale, top)
        total, exponent = totals.sum(), exponents[0]
    factor, base = _divisor(total, exponent)
    for part in prange(parts):
        place = 4 * part * step
        _quotients(x + place, out + place, counts[part], scale, shifts[part], base, factor, stream)


def compute(scores: Tensor, out: Tensor, temperature: float, threads: int, kernel: int | None = None) -> None:
    """Write the softmax of float32 `scores` (B, N), rows contiguous, to a contiguous float32 `out` as large.

    `kernel` is TWO, THREE or RECOMPUTED; by default TWO from `crossover()` scores on in rows of SHORT or more, else THREE.
    `threads` is what numba has been set to; the caller holds the lock under which numba runs. A temperature outside
    TEMPERATURES is a caller's error.
    """
    count, width = scores.shape
    size = count * width
    stream = size >= streaming()
    if kernel is None:
        kernel = TWO if width >= SHORT and size >= crossover() else THREE
    scale = _LOG2E / temperature
    x, x_step, y = scores.data_ptr(), 4 * scores.stride(0), out.data_ptr()
    if threads == 1 or size < ALONE:
        rows(kernel, x, x_step, y, 0, count, width, scale, stream)
        return
    # A long row that no thread would be left for is shared.
    shared = count % threads if width >= ALONE and count < 8 * threads else 0
    whole = count - shared
    if whole:
        rows_in_parallel(kernel, x, x_step, y, whole, width, scale, stream, min(whole, 4 * threads))
    for row in range(whole, count):
        place = 4 * row * width
        split_row(kernel, x + row * x_step, y + place, width, scale, stream, threads)


def softmax(scores: Tensor, temperature: float, threads: int) -> Tensor:
    """Return torch.softmax(scores/τ, -1), float32, for scores of any shape and floating type; see `compute`.

    A row of −∞ alone gives zeros; a row with +∞ or NaN gives NaN, as torch does.
    """
    shape = scores.shape
    if not scores.numel():
        return torch.empty(shape)
    if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
        return _in_float64(scores, temperature)
    flat = scores if scores.dtype == torch.float32 else scores.float()
    if len(shape) != 2:
        flat = flat.reshape(-1, shape[-1] if shape else 1)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    out = _empty(shape)
    compute(flat, out, temperature, threads)
    return out


def _empty(shape: torch.Size) -> Tensor:
    """Return float32 of a shape, not set, at an address that is a multiple of 64.

    Large ones by numpy, which asks the system for huge pages: faulting 256 MB in by pages of 4 KiB takes longer than its
    softmax.
    """
    count = shape.numel()
    if count < HUGE:
        return torch.empty(shape)
    room = np.empty(count + LANES, np.float32)
    start = -room.ctypes.data // 4 % LANES
    return torch.from_numpy(room[start : start + count]).view(shape)


def _in_float64(scores: Tensor, temperature: float) -> Tensor:
    """Return the softmax where scores/τ may leave float32, and float64 too: by the difference to the largest score."""
    exact = scores.detach().double()
    result = torch.softmax((exact - exact.amax(-1, keepdim=True)) / temperature, -1)
    return torch.where((exact == -math.inf).all(-1, keepdim=True), 0.0, result).float()
