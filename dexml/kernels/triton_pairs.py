"""The positive pairs of a batch on the GPU: sorted by the tiles they fall into, their scores and gradients.

A tile of 128 × 128 scores holds a positive or two, so a kernel walks the pairs of its tile and sets them one by one; there
is no mask over (B, L).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from dexml.kernels.triton_tiles import SIZES, block_of_queries, tuned
from dexml.types import Positives

STRIP = 64  # labels of one strip; the tiles of every kernel are whole strips wide


@dataclass(frozen=True, eq=False)
class TiledPairs:
    """Pairs (nnz) in the order of the tiles: `rows`, `columns` int32; `order` int64 leads there from the order of `Positives`.

    The pairs of query block b and label strip s are those from `starts[b · strips + s]` to the next start, int32.
    """

    rows: Tensor
    columns: Tensor
    order: Tensor
    starts: Tensor
    strips: int
    block: int

    @staticmethod
    def of(positives: Positives, device: torch.device) -> TiledPairs:
        """Return the pairs of `positives` (B, L) on `device`."""
        batch = len(positives)
        block, strips = block_of_queries(batch), triton.cdiv(positives.num_labels, STRIP)
        numbers = np.repeat(np.arange(batch, dtype=np.int64), np.diff(positives.indptr))
        rows, columns = torch.from_numpy(numbers).to(device), torch.from_numpy(positives.indices).to(device)
        tiles = rows // block * strips + columns // STRIP
        tiles, order = torch.sort(tiles, stable=True)
        bounds = torch.arange(triton.cdiv(batch, block) * strips + 1, device=device)
        starts = torch.searchsorted(tiles, bounds, out_int32=True)
        return TiledPairs(rows[order].int(), columns[order].int(), order, starts, strips, block)

    def tiled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a kernel walks: `rows`, `columns` and `starts`."""
        return self.rows, self.columns, self.starts


@triton.jit
def first_and_last(
    starts: tl.tensor, block: tl.tensor, strip: tl.tensor, strips: tl.tensor, width: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return where the pairs of `width` strips from `strip` on, of one query block, begin and end."""
    base = starts + block * strips
    return tl.load(base + strip), tl.load(base + tl.minimum(strip + width, strips))


@triton.jit
def spread_kernel(
    source: tl.tensor,  # (N, D)
    numbers: tl.tensor,  # (nnz) int64, rows of `source`
    pulls: tl.tensor,  # (nnz) float32
    starts: tl.tensor,  # (M + 1) int64
    targets: tl.tensor,  # (M) int64, rows of `result`, all different
    result: tl.tensor,  # (·, D) float32
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Add Σ pulls[p]·source[numbers[p]], p from starts[m] to starts[m + 1], to result[targets[m]]: one program a row.

    Pairs are added in their order, so that the sum is the same every time.
    """
    place = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for p in range(tl.load(starts + place), tl.load(starts + place + 1)):
        row = tl.load(source + tl.load(numbers + p) * D + d, mask=d < D, other=0.0).to(tl.float32)
        total += tl.load(pulls + p) * row
    at = result + tl.load(targets + place) * D + d
    tl.store(at, tl.load(at, mask=d < D, other=0.0) + total, mask=d < D)


def spread(source: Tensor, numbers: Tensor, pulls: Tensor, targets: Tensor, result: Tensor) -> None:
    """Do result.index_add_(0, targets, pulls[:, None] * source[numbers]) in a fixed order, without a (nnz, D) copy.

    `numbers` and `targets` are int64 (nnz), `pulls` float32 (nnz), `source` (N, D) and `result` float32 (·, D) contiguous.
    """
    if len(pulls) == 0:
        return
    targets, order = torch.sort(targets, stable=True)
    different, counts = torch.unique_consecutive(targets, return_counts=True)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    dimension = source.shape[1]
    block = min(1024, triton.next_power_of_2(dimension))
    spread_kernel[(len(different), triton.cdiv(dimension, block))](
        source, numbers[order], pulls[order], starts, different, result, D=dimension, BLOCK_D=block
    )


@tuned(
    [
        triton.Config({"BLOCK_P": 32, "BLOCK_D": 128}, num_warps=4),
        triton.Config({"BLOCK_P": 16, "BLOCK_D": 256}, num_warps=4),
    ],
    key=["D"],
)
@triton.jit(do_not_specialize=SIZES)
def pair_kernel(
    queries: tl.tensor,  # (B, D)
    labels: tl.tensor,  # (L, D)
    rows: tl.tensor,  # (nnz) int32
    columns: tl.tensor,  # (nnz) int32
    scores: tl.tensor,  # (nnz) float32
    count: tl.tensor,
    D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Write ⟨queries[rows[p]], labels[columns[p]]⟩ for every pair p."""
    places = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = tl.load(rows + places, mask=places < count, other=0).to(tl.int64)
    column = tl.load(columns + places, mask=places < count, other=0).to(tl.int64)
    total = tl.zeros((BLOCK_P,), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (places < count)[:, None] & (d < D)[None, :]
        query = tl.load(queries + row[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        label = tl.load(labels + column[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(query * label, 1)
    tl.store(scores + places, total, mask=places < count)


def pair_scores(queries: Tensor, labels: Tensor, pairs: TiledPairs) -> Tensor:
    """Return (queries[rows] * labels[columns]).sum(-1), float32 (nnz), in the order of `Positives`."""
    count, dimension = len(pairs.rows), queries.shape[1]
    tiled = torch.empty(count, dtype=torch.float32, device=queries.device)
    if count:
        pair_kernel[lambda meta: (triton.cdiv(count, meta["BLOCK_P"]),)](
            queries, labels, pairs.rows, pairs.columns, tiled, count, D=dimension
        )
    return torch.empty_like(tiled).index_copy_(0, pairs.order, tiled)
