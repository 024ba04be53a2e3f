"""One pass over the labels on the GPU: the exact log-partition, and where the top-k must be.

The pass writes the best score of every group of 16 labels. The k best labels lie in the k groups with the best maxima, so
sixteen times k labels are read again in float64, and what the pass rounded is held against a bound: a row whose k-th exact
score does not clear the best group left out, by more than the bound, is not proven and is searched again more widely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexml.kernels.triton_rescore import exact_scores
from dexml.kernels.triton_tiles import LOG2E, SIZES, block_of_queries, log_of_sums, multiply, rest, running_sum, splits, tuned
from dexml.types import TopK

MOST_QUERIES = 64  # of one program: 128 would not fit the registers beside the halves of a tile of labels
GROUP = 16  # labels whose best score is kept
SPARE = 16  # groups read again beyond k, at least
WIDER = 8  # times as many groups for rows that the first list does not prove
SLAB = 512  # queries of one pass; more gain nothing and the group maxima would fill the memory
BUFFER = 1 << 26  # group maxima, or candidates, of one slab
BRUTE = 1 << 24  # scores of one block of the float64 search


@dataclass(frozen=True, eq=False)
class Scanned:
    """What one pass reads: `rows` float32 or int16 (L, D+), whole multiples of `unit`, off by at most `worst` in norm."""

    rows: Tensor
    unit: float
    worst: float


@tuned(
    [
        triton.Config({"BLOCK_L": 128, "BLOCK_D": 32}, num_warps=4, num_stages=3),
        triton.Config({"BLOCK_L": 128, "BLOCK_D": 32}, num_warps=4, num_stages=5),
        triton.Config({"BLOCK_L": 64, "BLOCK_D": 64}, num_warps=4, num_stages=3),
        triton.Config({"BLOCK_L": 64, "BLOCK_D": 64}, num_warps=4, num_stages=4),
        triton.Config({"BLOCK_L": 128, "BLOCK_D": 64}, num_warps=8, num_stages=3),
    ],
    key=["D", "BLOCK_B", "COPY"],
)
@triton.jit(do_not_specialize=SIZES)
def scan_kernel(
    high: tl.tensor,  # (B, D) bfloat16
    low: tl.tensor,  # (B, D) bfloat16
    labels: tl.tensor,  # (L, D)
    maxima: tl.tensor,  # (B, groups)
    tops: tl.tensor,  # (splits, B)
    totals: tl.tensor,  # (splits, B)
    B: tl.tensor,
    L: tl.tensor,
    groups: tl.tensor,
    unit: tl.tensor,
    scale: tl.tensor,
    D: tl.constexpr,
    BLOCK_B: tl.constexpr,
    GROUP: tl.constexpr,
    COPY: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Write the group maxima of `(high + low) @ labels.T * unit` and partial Σ 2^{s·scale} of this program's tiles.

    Both sides are split into two bfloat16 parts, products of which are nearly float32 and keep pace with the memory.
    Query blocks run fastest over the grid, so that they share a tile of labels in the L2 cache.
    """
    split = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    inside = tl.minimum(rows, B - 1).to(tl.int64)
    top = tl.full((BLOCK_B,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_B,), dtype=tl.float32)
    for tile in range(split, tl.cdiv(L, BLOCK_L), tl.num_programs(1)):
        columns = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        within = tl.minimum(columns, L - 1).to(tl.int64)
        scores = tl.zeros((BLOCK_L, BLOCK_B), dtype=tl.float32)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            if D % BLOCK_D == 0:
                label = tl.load(labels + within[:, None] * D + d[None, :]).to(tl.float32)
                query_high = tl.load(high + inside[None, :] * D + d[:, None])
                query_low = tl.load(low + inside[None, :] * D + d[:, None])
            else:
                label = tl.load(labels + within[:, None] * D + d[None, :], mask=d[None, :] < D, other=0).to(tl.float32)
                query_high = tl.load(high + inside[None, :] * D + d[:, None], mask=d[:, None] < D, other=0.0)
                query_low = tl.load(low + inside[None, :] * D + d[:, None], mask=d[:, None] < D, other=0.0)
            label_high = label.to(tl.bfloat16)
            label_low = rest(label, label_high)
            scores = multiply(label_high, query_high, scores, "tf32")
            scores = multiply(label_high, query_low, scores, "tf32")
            scores = multiply(label_low, query_high, scores, "tf32")
            scores = multiply(label_low, query_low, scores, "tf32")
        scores = tl.where(columns[:, None] < L, scores * unit, float("-inf"))
        best = tl.max(tl.reshape(scores, (BLOCK_L // GROUP, GROUP, BLOCK_B)), 1)  # (BLOCK_L // GROUP, BLOCK_B)
        numbers = tile * (BLOCK_L // GROUP) + tl.arange(0, BLOCK_L // GROUP)
        tl.store(
            maxima + rows.to(tl.int64)[None, :] * groups + numbers[:, None],
            best,
            mask=(rows[None, :] < B) & (numbers[:, None] < groups),
        )
        top, total = running_sum(scores, top, total, scale, 0)
    tl.store(tops + split * B + rows, top, mask=rows < B)
    tl.store(totals + split * B + rows, total, mask=rows < B)


def halves(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return bfloat16 `high` and `low` with high + low equal to a float32 tensor within 2⁻¹⁸ of each number."""
    high = tensor.bfloat16()
    return high, (tensor - high.float()).bfloat16()


def one_pass(queries: Tensor, scanned: Scanned, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the maxima of every group of 16 labels, float32 (B, ⌈L/16⌉), and log_z (B) in float64."""
    batch, length = len(queries), len(scanned.rows)
    dimension = scanned.rows.shape[1]
    high, low = halves(torch.nn.functional.pad(queries, (0, dimension - queries.shape[1])))
    block = min(MOST_QUERIES, block_of_queries(batch))
    blocks, groups = triton.cdiv(batch, block), triton.cdiv(length, GROUP)
    parts = splits(queries.device, blocks, triton.cdiv(length, 64))
    maxima = queries.new_empty(batch, groups)
    tops, totals = queries.new_empty(parts, batch), queries.new_empty(parts, batch)
    scan_kernel[(blocks, parts)](
        high,
        low,
        scanned.rows,
        maxima,
        tops,
        totals,
        batch,
        length,
        groups,
        scanned.unit,
        LOG2E / temperature,
        D=dimension,
        BLOCK_B=block,
        GROUP=GROUP,
        COPY=scanned.rows.dtype == torch.int16,
    )
    return maxima, log_of_sums(tops, totals, temperature)


def scan(
    queries: Tensor, labels: Tensor, scanned: Scanned, k: int, temperature: float, longest: float
) -> tuple[TopK, int, int]:
    """Return the exact top-k of `queries @ labels.T` with log_z, and how many rows took a wider list, and a full search.

    The order is that of the float64 scores, equal ones by ascending id. `longest` is the largest ‖y‖.
    """
    slab = max(1, min(SLAB, BUFFER // max(1, triton.cdiv(len(labels), GROUP), 2 * GROUP * k)))
    answers, wider, full = [], 0, 0
    for start in range(0, len(queries), slab):
        answer, more, most = _slab(queries[start : start + slab], labels, scanned, k, temperature, longest)
        answers.append(answer)
        wider, full = wider + more, full + most
    if not answers:
        ids = torch.empty(0, k, dtype=torch.int64, device=labels.device)
        return TopK(ids, labels.new_empty(0, k), labels.new_empty(0)), 0, 0
    ids, scores = torch.cat([a.ids for a in answers]), torch.cat([a.scores for a in answers])
    return TopK(ids, scores, torch.cat([a.log_z for a in answers if a.log_z is not None])), wider, full


def _slab(
    queries: Tensor, labels: Tensor, scanned: Scanned, k: int, temperature: float, longest: float
) -> tuple[TopK, int, int]:
    maxima, log_z = one_pass(queries, scanned, temperature)
    kept, missing = min(k, len(labels)), max(0, k - len(labels))
    # ‖q‖(‖y − ỹ‖ + ‖y‖·what the split and 4 D float32 additions can lose): Cauchy and Schwarz.
    lost = scanned.worst + longest * (2.0**-15 + labels.shape[1] * 2.0**-21)
    bound = torch.linalg.vector_norm(queries.double(), dim=1) * lost  # (B)
    width = kept + max(SPARE, kept // 4)
    ids, scores, proven = _of_groups(queries, labels, maxima, kept, width, bound)
    wider = full = 0
    rows = (~proven).nonzero()[:, 0]
    if len(rows):
        wider = len(rows)
        some = _of_groups(queries[rows], labels, maxima[rows], kept, WIDER * width, bound[rows])
        ids[rows], scores[rows] = some[0], some[1]
        rows = rows[~some[2]]
    if len(rows):
        full = len(rows)
        ids[rows], scores[rows] = brute_force(queries[rows], labels, kept)
    ids = torch.nn.functional.pad(ids, (0, missing), value=-1)
    scores = torch.nn.functional.pad(scores, (0, missing), value=-math.inf)
    return TopK(ids, scores.float(), log_z.float()), wider, full


def _of_groups(
    queries: Tensor, labels: Tensor, maxima: Tensor, k: int, width: int, bound: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids and float64 scores (B, k) of the best labels in the `width` best groups, and which rows are proven (B)."""
    length, groups = len(labels), maxima.shape[1]
    width = min(width, groups)
    best, chosen = torch.topk(maxima, min(width + 1, groups), dim=1)
    chosen = chosen[:, :width].sort(1).values  # ascending, so that a stable sort keeps the lowest id first
    members = chosen[:, :, None] * GROUP + torch.arange(GROUP, device=labels.device)  # (B, width, GROUP)
    ids = members.flatten(1)
    ids = torch.where(ids < length, ids, -1)
    ordered, places = torch.sort(exact_scores(queries, labels, ids), dim=1, descending=True, stable=True)
    ordered, ids = ordered[:, :k], ids.gather(1, places[:, :k])
    if width == groups:
        return ids, ordered, torch.ones(len(queries), dtype=torch.bool, device=labels.device)
    return ids, ordered, ordered[:, -1] > best[:, width].double() + bound


def brute_force(queries: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return ids and float64 scores (B, k) of the best of all labels, block by block; equal scores by ascending id.

    A float64 matrix product would be faster, but may round equal rows differently at its edges.
    """
    step = max(1, BRUTE // len(queries))
    ids = torch.empty(len(queries), 0, dtype=torch.int64, device=labels.device)
    scores = torch.empty(len(queries), 0, dtype=torch.float64, device=labels.device)
    for start in range(0, len(labels), step):
        numbers = torch.arange(start, min(start + step, len(labels)), device=labels.device).expand(len(queries), -1)
        block = exact_scores(queries, labels, numbers)
        scores, places = torch.sort(torch.cat([scores, block], 1), dim=1, descending=True, stable=True)
        ids = torch.cat([ids, numbers], 1).gather(1, places[:, :k])
        scores = scores[:, :k]
    return ids, scores
