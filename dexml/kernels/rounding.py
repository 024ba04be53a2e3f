"""int16 copies of labels and queries, and what the rounding does to scores and to the log-partition.

The int32 sum of int16 products cannot overflow when the two rows are scaled to lengths whose product is 2^31 (Cauchy and
Schwarz). The 31 bits are dealt unevenly. Labels get 14: they are rounded at random (up with the probability of what is cut
off), so that their errors have mean zero, are independent of each other whatever the labels are, near-duplicates too, and
average out in a sum over many. A query's one error is shared by all of its scores and averages out nowhere: it gets 17.
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
SAMPLE = 2048  # labels, at least, that tell which way a query's own error pulls
PIECE = 32  # int16 of a vector register


@dataclass(frozen=True, eq=False)
class RoundedLabels:
    """An int16 copy: `rows` (L+, D+), zero-padded, whole multiples of `unit`; and float32 rows of every `stride`-th label."""

    rows: npt.NDArray[np.int16]
    unit: float
    worst: float  # the largest ‖y − ỹ‖
    longest: float  # the largest ‖y‖
    sample: Tensor  # (S, D)
    stride: int


@dataclass(frozen=True, eq=False)
class RoundedQueries:
    """Queries `near` int16 (B, D) times `units` (B), what the rounding `lost` (B, D), and the `norms` (B) they had."""

    near: Tensor
    units: Tensor
    lost: Tensor
    norms: Tensor


def round_labels(labels: Tensor, longest: float) -> RoundedLabels:
    """Return the copy of `labels` float32 (L, D), whose largest norm is `longest`; the same one at every call."""
    count, width = labels.shape
    copy = torch.zeros(-(-count // LANES) * LANES, -(-width // PIECE) * PIECE, dtype=torch.int16)
    unit = max(longest / (LABEL_LENGTH - math.sqrt(width)), 1e-30)  # a row grows by less than √D steps
    # Not torch's generator: labels made by one of the same seed would not be independent of it, and that was seen.
    dither = np.random.default_rng(0x6B1D_5EED)
    worst = 0.0
    for start in range(0, count, 16384):
        block = labels[start : start + 16384]
        whole = torch.floor(block / unit + torch.from_numpy(dither.random(block.shape, np.float32)))
        copy[start : start + len(block), :width] = whole
        worst = max(worst, float(torch.linalg.vector_norm(block - whole * unit, dim=1).max()))
    stride = _prime_from(count // SAMPLE)
    return RoundedLabels(copy.numpy(), unit, worst, longest, labels[::stride].contiguous(), stride)


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


def log_partition(
    masses: Tensor, queries: RoundedQueries, labels: RoundedLabels, sampled: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return log_z float64 (B) and its standard error (B) from the `masses` (B, 3) of `numba_scan.finish`.

    `sampled` (B, S) are the sampled labels' exact scores, −inf for candidates. Only the labels that are no candidates, with
    their share of the sum, can be wrong:

    * by their own rounding. Each score is off by an independent error of mean zero in an interval of ‖x‖·unit/τ at most
      half of which is its deviation (Hoeffding); the mean of its exponential is taken off.
    * by the query's. It moves log_z by ⟨x − x̃, ȳ⟩/τ, where ȳ is the mean of those labels under the softmax. The sample says
      what that is, as far as it holds such labels: an estimate over n effective labels counts n/(n + 1) against the
      expectation 0 of an error whose direction has nothing to do with the labels.
    """
    step = queries.norms.double() * (labels.unit / temperature)
    weights = torch.softmax(sampled.double() / temperature, dim=1).nan_to_num_()
    pull = (weights * (queries.lost @ labels.sample.T)).sum(1) / temperature
    concentration = weights.square().sum(1)  # 1/n
    empty = concentration == 0
    counts = torch.where(empty, 0.0, 1 / (1 + concentration))
    rest = masses[:, 1] - step.square() / 12 + counts * pull
    log_z = torch.logaddexp(masses[:, 0], rest)
    direction = torch.linalg.vector_norm(queries.lost.double(), dim=1) * labels.longest / math.sqrt(queries.lost.shape[1])
    own = torch.where(empty, 1.0, concentration / (1 + concentration)).sqrt() * direction / temperature
    share = torch.exp(rest - log_z).nan_to_num_()
    doubt = share * ((step / 2 * masses[:, 2]).square() + own.square() + (step.square() / 24).square()).sqrt()
    # Beyond a tenth the first order says little.
    return log_z, torch.where((step > 0.1) & (share > 0), torch.inf, doubt)


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
