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

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dexml.kernels.instructions import LANES

LABEL_LENGTH, QUERY_LENGTH = 2.0**14, 2.0**17
LARGEST = 32766  # of one component
BYTE = 127
SAMPLE = 2048  # labels, at least, that tell which way a query's own error pulls
PIECE = 32  # int16 of a vector register


@dataclass(frozen=True, eq=False)
class RoundedLabels:
    """A copy `rows` (L+, D+), int16 or int8, zero-padded: whole multiples of `unit` · `steps[label]`, or of `unit` alone."""

    rows: npt.NDArray[np.int16] | npt.NDArray[np.int8]
    unit: float
    steps: npt.NDArray[np.float32]  # (L) of an int8 copy, (0) of an int16 one
    deviation: float  # of one number: the root of the mean of (y − ỹ)²
    worst: float  # the largest ‖y − ỹ‖
    longest: float  # the largest ‖y‖


@dataclass(frozen=True, eq=False)
class Sample:
    """Every `stride`-th label, `count` of them: float32 `rows` (S+, D), zero-padded to whole vectors."""

    rows: Tensor
    stride: int
    count: int


@dataclass(frozen=True, eq=False)
class RoundedQueries:
    """Queries `near` int16 (B, D) times `units` (B), what the rounding `lost` (B, D), and the `norms` (B) they had."""

    near: Tensor
    units: Tensor
    lost: Tensor
    norms: Tensor


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
    for start in range(0, count, 16384):
        block = labels[start : start + 16384]
        steps = torch.full((len(block),), unit)
        if bits == 8:
            steps = (block.abs().amax(1) / (BYTE - 0.01)).clamp_(min=1e-30)
            all_steps.append(steps)
        dithered = torch.floor(block / steps[:, None] + torch.from_numpy(dither.random(block.shape, np.float32)))
        copy[start : start + len(block), :width] = dithered
        lost = torch.linalg.vector_norm(block - dithered * steps[:, None], dim=1)
        worst, square = max(worst, float(lost.max())), square + float(lost.double().square().sum())
    own = torch.cat(all_steps).numpy() if all_steps else np.empty(0, np.float32)
    return RoundedLabels(rows, unit, own, math.sqrt(square / (count * width)), worst, longest)


def take_sample(labels: Tensor) -> Sample:
    """Return at least `SAMPLE` of `labels` float32 (L, D), or all."""
    stride = _prime_from(len(labels) // SAMPLE)
    count = -(-len(labels) // stride)
    rows = torch.zeros(-(-count // LANES) * LANES, labels.shape[1])
    rows[:count] = labels[::stride]
    return Sample(rows, stride, count)


def round_queries(rows: Tensor) -> RoundedQueries:
    """Return `rows` float32 (B, D) in the finest steps at which no sum can overflow."""
    norms = torch.linalg.vector_norm(rows, dim=1)
    units = torch.maximum(norms / (QUERY_LENGTH - math.sqrt(rows.shape[1])), rows.abs().amax(1) / LARGEST).clamp_(min=1e-30)
    whole = torch.round(rows / units[:, None])
    return RoundedQueries(whole.to(torch.int16), units, rows - whole * units[:, None], norms)


def score_error(queries: RoundedQueries, labels: RoundedLabels) -> Tensor:
    """Return the most (B) by which any score ⟨x̃, ỹ⟩ in float32 can differ from ⟨x, y⟩."""
    # ⟨x, y⟩ − ⟨x̃, ỹ⟩ = ⟨x, y − ỹ⟩ + ⟨x − x̃, ỹ⟩, and the rounding of the float32 sums.
    longest, width = labels.longest + labels.worst, labels.rows.shape[1]
    lost = torch.linalg.vector_norm(queries.lost, dim=1)
    error = queries.norms * labels.worst + lost * longest + queries.norms * longest * (width + 8) * 2.0**-23
    return error * (1 + 1e-5) + 1e-37


def noise(queries: RoundedQueries, labels: RoundedLabels, temperature: float) -> npt.NDArray[np.float64]:
    """Return (B, 2) what rounding does to s/τ: the deviations of a label's own error and of the query's.

    The query's error ⟨x − x̃, ȳ⟩ is that of a direction which has nothing to do with ȳ: 1/√D of the largest possible.
    """
    lost = torch.linalg.vector_norm(queries.lost, dim=1) * (labels.longest / math.sqrt(queries.lost.shape[1]))
    return (torch.stack([queries.norms * labels.deviation, lost], 1).double() / temperature).numpy()


def pack(queries: RoundedQueries, width: int, lanes: int) -> npt.NDArray[np.int16]:
    """Return int16 queries (G, width/2, lanes, 2): consecutive ones in consecutive lanes, zeros beyond B and D."""
    rows = queries.near
    groups = -(-len(rows) // lanes)
    room = torch.zeros(groups * lanes, width, dtype=torch.int16)
    room[: len(rows), : rows.shape[1]] = rows
    return room.view(groups, lanes, width // 2, 2).transpose(1, 2).contiguous().numpy()


def _prime_from(number: int) -> int:
    """Return the smallest prime ≥ `number` (1 for less than 2): a stride that no period of the labels divides."""
    candidate = max(1, number)
    while candidate > 1 and any(candidate % d == 0 for d in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate
