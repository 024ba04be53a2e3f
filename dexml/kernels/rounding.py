"""Integer copies of labels and queries, and what the rounding does to scores and to the log-partition.

The int32 sum of int16 products cannot overflow when the two rows are scaled to lengths whose product is 2^31 (Cauchy and
Schwarz). The 31 bits are dealt unevenly. Labels get 14: they are rounded at random (up with the probability of what is cut
off), so that their errors have mean zero, are independent of each other whatever the labels are, near-duplicates too, and
average out in a sum over many. A query's one error is shared by all of its scores and averages out nowhere: it gets 17.

An int8 copy, each row in steps of its own, is half as long to read. It serves a query or a few where reading is all that
takes time, and where the labels that are no candidates are so many, or weigh so little, that its coarse errors average out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from dexml.kernels.instructions import LANES
from dexml.types import Float32Array

LABEL_LENGTH, QUERY_LENGTH = 2.0**14, 2.0**17
LARGEST = 32766  # of one component
BYTE = 127
SAMPLE = 2048  # labels, at least, that tell which way a query's own error pulls
PIECE = 32  # int16 of a vector register


@dataclass(frozen=True, eq=False)
class Levers:
    """What is known of all scores s_j = ⟨x, y_j⟩ and their errors ε_j = ⟨x, y_j − ỹ_j⟩ before the query x is.

    Σs = ⟨x, y⟩, Σs² = xᵀ yy x, Σε = ⟨x, e⟩ and Σεs = xᵀ ey x.
    """

    y: npt.NDArray[np.float64]  # (D)
    yy: npt.NDArray[np.float64]  # (D, D)
    e: npt.NDArray[np.float64]  # (D)
    ey: npt.NDArray[np.float64]  # (D, D)

    def of(self, rows: Float32Array, labels: int) -> npt.NDArray[np.float64]:
        """Return L, Σs, Σs², Σε and Σεs for each row (B, 5)."""
        x = rows.astype(np.float64)
        square, product = ((x @ matrix * x).sum(1) for matrix in (self.yy, self.ey))
        return np.stack([np.full(len(x), float(labels)), x @ self.y, square, x @ self.e, product], 1)


@dataclass(frozen=True, eq=False)
class RoundedLabels:
    """A copy `rows` (L+, D+), int16 or int8, zero-padded: whole multiples of `unit` · `steps[label]`, or of `unit` alone."""

    rows: npt.NDArray[np.int16] | npt.NDArray[np.int8]
    unit: float
    steps: Float32Array  # (L) of an int8 copy, (0) of an int16 one
    deviation: float  # of one number: the root of the mean of (y − ỹ)²
    worst: float  # the largest ‖y − ỹ‖
    longest: float  # the largest ‖y‖
    levers: Levers | None  # of an int8 copy


@dataclass(frozen=True, eq=False)
class Sample:
    """Every `stride`-th label, `count` of them: float32 `rows` (S+, D), zero-padded to whole vectors."""

    rows: Tensor
    stride: int
    count: int


@dataclass(frozen=True, eq=False)
class RoundedQueries:
    """Queries `near` int16 (B, D+), zero-padded, times `units` (B); `both` (2B, D) are they and what the rounding took away.

    `norms` and `lost` (B) are the norms of the two.
    """

    near: npt.NDArray[np.int16]
    units: Float32Array
    both: Float32Array
    norms: npt.NDArray[np.float64]
    lost: npt.NDArray[np.float64]


def round_labels(labels: Tensor, longest: float, bits: int = 16) -> RoundedLabels:
    """Return a copy of `labels` float32 (L, D), whose largest norm is `longest`, in `bits` 16 or 8; the same at every call."""
    count, width = labels.shape
    # numpy asks the kernel for huge pages, torch does not.
    kind = np.int16 if bits == 16 else np.int8
    rows = np.zeros((-(-count // LANES) * LANES, -(-width // PIECE) * PIECE), kind)
    copy = torch.from_numpy(rows)
    unit = max(longest / (LABEL_LENGTH - math.sqrt(width)), 1e-30) if bits == 16 else 1.0  # a row grows by less than √D steps
    # Not torch's generator: labels made by one of the same seed would not be independent of it, and that was seen.
    dither = np.random.default_rng(0x6B1D_5EED + bits)
    worst, square, all_steps = 0.0, 0.0, []
    levers = Levers(np.zeros(width), np.zeros((width, width)), np.zeros(width), np.zeros((width, width)))
    for start in range(0, count, 16384):
        block = labels[start : start + 16384]
        steps = torch.full((len(block),), unit)
        if bits == 8:
            steps = (block.abs().amax(1) / (BYTE - 0.01)).clamp_(min=1e-30)
            all_steps.append(steps)
        dithered = torch.floor(block / steps[:, None] + torch.from_numpy(dither.random(block.shape, np.float32)))
        copy[start : start + len(block), :width] = dithered
        error = block - dithered * steps[:, None]
        lost = torch.linalg.vector_norm(error, dim=1)
        worst, square = max(worst, float(lost.max())), square + float(lost.double().square().sum())
        if bits == 8:
            levers.y[:] += block.sum(0, dtype=torch.float64).numpy()
            levers.e[:] += error.sum(0, dtype=torch.float64).numpy()
            levers.yy[:] += (block.T @ block).numpy()
            levers.ey[:] += (error.T @ block).numpy()
    own = torch.cat(all_steps).numpy() if all_steps else np.empty(0, np.float32)
    return RoundedLabels(rows, unit, own, math.sqrt(square / (count * width)), worst, longest, levers if bits == 8 else None)


def take_sample(labels: Tensor) -> Sample:
    """Return at least `SAMPLE` of `labels` float32 (L, D), or all."""
    stride = _prime_from(len(labels) // SAMPLE)
    count = -(-len(labels) // stride)
    rows = torch.zeros(-(-count // LANES) * LANES, labels.shape[1])
    rows[:count] = labels[::stride]
    return Sample(rows, stride, count)


def round_queries(rows: Float32Array) -> RoundedQueries:
    """Return `rows` (B, D) in the finest steps at which no sum can overflow."""
    batch, width = rows.shape
    near, both = np.zeros((batch, -(-width // PIECE) * PIECE), np.int16), np.empty((2 * batch, width), np.float32)
    units, norms, lost = np.empty(batch, np.float32), np.empty(batch), np.empty(batch)
    _round_rows(rows, QUERY_LENGTH - math.sqrt(width), near, units, both, norms, lost)
    return RoundedQueries(near, units, both, norms, lost)


@njit(cache=True)
def _round_rows(rows: Any, limit: float, near: Any, units: Any, both: Any, norms: Any, lost: Any) -> None:
    # Compiled, because a single query would spend more time between torch's calls than in them.
    batch, width = rows.shape
    for b in range(batch):
        square, peak = 0.0, np.float32(0)
        for d in range(width):
            square += np.float64(rows[b, d]) ** 2
            peak = max(peak, abs(rows[b, d]))
        norms[b] = math.sqrt(square)
        unit = np.float32(max(norms[b] / limit, peak / LARGEST, 1e-30))
        units[b], square = unit, 0.0
        for d in range(width):
            whole = np.float32(round(rows[b, d] / unit))
            near[b, d] = np.int16(whole)
            both[b, d], both[batch + b, d] = rows[b, d], rows[b, d] - whole * unit
            square += np.float64(both[batch + b, d]) ** 2
        lost[b] = math.sqrt(square)


def score_error(queries: RoundedQueries, labels: RoundedLabels) -> Float32Array:
    """Return the most (B) by which any score ⟨x̃, ỹ⟩ in float32 can differ from ⟨x, y⟩."""
    # ⟨x, y⟩ − ⟨x̃, ỹ⟩ = ⟨x, y − ỹ⟩ + ⟨x − x̃, ỹ⟩, and the rounding of the float32 sums.
    longest, width = labels.longest + labels.worst, labels.rows.shape[1]
    error = queries.norms * (labels.worst + longest * (width + 8) * 2.0**-23) + queries.lost * longest
    rounded: Float32Array = (error * (1 + 1e-5) + 1e-37).astype(np.float32)
    return rounded


def noise(queries: RoundedQueries, labels: RoundedLabels, temperature: float) -> npt.NDArray[np.float64]:
    """Return (B, 2) what rounding does to s/τ: the deviations of a label's own error and of the query's.

    The query's error ⟨x − x̃, ȳ⟩ is that of a direction which has nothing to do with ȳ: 1/√D of the largest possible.
    """
    own, shared = labels.deviation / temperature, labels.longest / (math.sqrt(queries.both.shape[1]) * temperature)
    return np.stack([queries.norms * own, queries.lost * shared], 1)


def pack(near: npt.NDArray[np.int16], lanes: int) -> npt.NDArray[np.int16]:
    """Return int16 queries (B, D+) as (G, D+/2, lanes, 2): consecutive ones in consecutive lanes, zeros beyond B."""
    groups, width = -(-len(near) // lanes), near.shape[1]
    room = np.zeros((groups * lanes, width), np.int16)
    room[: len(near)] = near
    return np.ascontiguousarray(room.reshape(groups, lanes, width // 2, 2).transpose(0, 2, 1, 3))


def _prime_from(number: int) -> int:
    """Return the smallest prime ≥ `number` (1 for less than 2): a stride that no period of the labels divides."""
    candidate = max(1, number)
    while candidate > 1 and any(candidate % d == 0 for d in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate
