"""Sums over all labels for each query on the GPU, and their gradients, without the score matrix.

Scores s = ⟨x, y⟩ exist one tile at a time. What the gradient needs of them, a weight for each score, is written a slab of
labels at a time in the operands' own type, and the two products with it are left to cuBLAS; factors of a row are multiplied
into the operands, so that weights may be written before the row's sum is known. Query gradients are added up slab by slab in
a fixed order, without atomics.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexml.kernels.triton_pairs import STRIP, TiledPairs, first_and_last
from dexml.kernels.triton_tiles import LOG2E, SIZES, log_of_sums, running_sum, splits, tile_of_scores, tuned

SLAB_BYTES = 1 << 30  # of weights
EXPONENTIAL, SLOPE, SIGMOID, HINGE, STABLE = 0, 1, 2, 3, 4  # the weights: 2^{z − shift}, σ(1 − σ), σ, max(0, z + shift), S'(z)
WIDEST = 256  # labels of a tile, at most; slabs are whole multiples

TILES = [
    # Four warps spill at 128 × 128: benchmarks/gpu_compile.py shows what each configuration takes.
    triton.Config({"BLOCK_L": 128, "BLOCK_D": 64}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_L": 128, "BLOCK_D": 64}, num_warps=8, num_stages=4),
    triton.Config({"BLOCK_L": 256, "BLOCK_D": 64}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_L": 256, "BLOCK_D": 32}, num_warps=8, num_stages=4),
    triton.Config({"BLOCK_L": 64, "BLOCK_D": 64}, num_warps=4, num_stages=4),
]
KEY = ["D", "BLOCK_B", "PRECISION"]


@triton.jit
def without_positives(
    tile: tl.tensor,
    value: tl.constexpr,
    rows_of_pairs: tl.tensor,
    columns_of_pairs: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
) -> tl.tensor:
    """Return `tile` (BLOCK_B, BLOCK_L) with `value` at its positive pairs, from the `first` on up to the `last`, one by one."""
    for place in range(first, last):
        row, column = tl.load(rows_of_pairs + place), tl.load(columns_of_pairs + place)
        tile = tl.where((rows == row)[:, None] & (columns == column)[None, :], value, tile)
    return tile


@tuned(TILES, key=KEY)
@triton.jit(do_not_specialize=SIZES)
def partition_kernel(
    queries: tl.tensor,  # (B, D)
    labels: tl.tensor,  # (L, D)
    rows_of_pairs: tl.tensor,  # (nnz) int32
    columns_of_pairs: tl.tensor,  # (nnz) int32
    starts: tl.tensor,  # (blocks · strips + 1) int32
    tops: tl.tensor,  # (splits, B) float32
    totals: tl.tensor,  # (splits, B) float32
    B: tl.tensor,
    L: tl.tensor,
    strips: tl.tensor,
    scale: tl.tensor,
    D: tl.constexpr,
    EXCLUDE: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Write the maxima and Σ 2^{(s − max)·scale} of this program's tiles, with EXCLUDE without the positive pairs.

    Positives leave the sum before it is taken: subtracting them afterwards would cancel.
    """
    block, split = tl.program_id(0), tl.program_id(1)
    rows = block * BLOCK_B + tl.arange(0, BLOCK_B)
    top = tl.full((BLOCK_B,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_B,), dtype=tl.float32)
    for tile in range(split, tl.cdiv(L, BLOCK_L), tl.num_programs(1)):
        columns = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        scores = tile_of_scores(queries, labels, rows, columns, B, L, D, BLOCK_B, BLOCK_L, BLOCK_D, PRECISION)
        scores = tl.where(columns[None, :] < L, scores, float("-inf"))
        if EXCLUDE:
            first, last = first_and_last(starts, block, tile * (BLOCK_L // STRIP), strips, BLOCK_L // STRIP)
            scores = without_positives(scores, float("-inf"), rows_of_pairs, columns_of_pairs, first, last, rows, columns)
        top, total = running_sum(scores, top, total, scale, 1)
    tl.store(tops + split * B + rows, top, mask=rows < B)
    tl.store(totals + split * B + rows, total, mask=rows < B)


@tuned(TILES, key=[*KEY, "KIND", "STORE"])
@triton.jit(do_not_specialize=SIZES)
def weigh_kernel(
    queries: tl.tensor,  # (B, D)
    labels: tl.tensor,  # (L, D)
    rows_of_pairs: tl.tensor,  # (nnz) int32
    columns_of_pairs: tl.tensor,  # (nnz) int32
    starts: tl.tensor,  # (blocks · strips + 1) int32
    shifts: tl.tensor,  # (B) float32
    weights: tl.tensor,  # (B, stride)
    sums: tl.tensor,  # (splits, B) float32
    slopes: tl.tensor,  # (splits, B) float32
    B: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    stride: tl.tensor,
    strips: tl.tensor,
    scale: tl.tensor,
    D: tl.constexpr,
    KIND: tl.constexpr,
    EXCLUDE: tl.constexpr,
    STORE: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Weigh the scores of the labels [begin, end), with z = s·scale: write row sums and, with STORE, the weights themselves.

    KIND 0: weights e = 2^{z − shift}, Σ e. KIND 1: weights σ(1 − σ), Σ σ and Σ σ(1 − σ) with σ = σ(z + shift). KIND 2:
    weights σ, Σ log(1 + e^{z + shift}). KIND 3: weights h = max(0, z + shift), Σ h². KIND 4: weights S' and Σ S, with S(z) =
    1 + z, or 1/(1 − z) for z < 0. With EXCLUDE (KIND 0, 3 and 4) positive pairs weigh nothing. `begin` is a whole strip.
    """
    block, split = tl.program_id(0), tl.program_id(1)
    rows = block * BLOCK_B + tl.arange(0, BLOCK_B)
    shift = tl.load(shifts + rows, mask=rows < B, other=0.0)
    total = tl.zeros((BLOCK_B,), dtype=tl.float32)
    slope = tl.zeros((BLOCK_B,), dtype=tl.float32)
    for tile in range(split, tl.cdiv(end - begin, BLOCK_L), tl.num_programs(1)):
        places = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        columns = begin + places
        scores = tile_of_scores(queries, labels, rows, columns, B, end, D, BLOCK_B, BLOCK_L, BLOCK_D, PRECISION)
        inside = (columns < end)[None, :]
        if KIND == 0:
            # Only a positive, which weighs nothing in the end, may stand above the sum that it is not part of.
            weight = tl.where(inside, tl.exp2(tl.minimum(scores * scale - shift[:, None], 100.0)), 0.0)
            if EXCLUDE:
                first, last = first_and_last(starts, block, (begin + tile * BLOCK_L) // STRIP, strips, BLOCK_L // STRIP)
                weight = without_positives(weight, 0.0, rows_of_pairs, columns_of_pairs, first, last, rows, columns)
            total += tl.sum(weight, 1)
        elif KIND == 3:
            z = scores * scale + shift[:, None]
            weight = tl.where(inside & ~(z <= 0.0), z, 0.0)  # NaN stays
            if EXCLUDE:
                first, last = first_and_last(starts, block, (begin + tile * BLOCK_L) // STRIP, strips, BLOCK_L // STRIP)
                weight = without_positives(weight, 0.0, rows_of_pairs, columns_of_pairs, first, last, rows, columns)
            total += tl.sum(weight * weight, 1)
        elif KIND == 4:
            z = tl.where(inside, scores * scale, float("-inf"))
            if EXCLUDE:
                first, last = first_and_last(starts, block, (begin + tile * BLOCK_L) // STRIP, strips, BLOCK_L // STRIP)
                z = without_positives(z, float("-inf"), rows_of_pairs, columns_of_pairs, first, last, rows, columns)
            inverse = 1.0 / (1.0 + tl.abs(z))
            weight = tl.where(z >= 0.0, 1.0, inverse * inverse)
            total += tl.sum(tl.where(z >= 0.0, 1.0 + z, inverse), 1)
        else:
            z = scores * scale + shift[:, None]
            tail = tl.exp(-tl.abs(z))
            smaller = tail / (1.0 + tail)  # σ(−|z|), no difference of nearly equal numbers
            sigmoid = tl.where(z >= 0.0, 1.0 / (1.0 + tail), smaller)
            if KIND == 1:
                weight = tl.where(inside, smaller / (1.0 + tail), 0.0)
                total += tl.sum(tl.where(inside, sigmoid, 0.0), 1)
                slope += tl.sum(weight, 1)
            else:
                weight = tl.where(inside, sigmoid, 0.0)
                total += tl.sum(tl.where(inside, tl.maximum(z, 0.0) + tl.log(1.0 + tail), 0.0), 1)
        if STORE:
            at = weights + rows.to(tl.int64)[:, None] * stride + places[None, :]
            tl.store(at, weight.to(weights.dtype.element_ty), mask=(rows < B)[:, None] & inside)
    tl.store(sums + split * B + rows, total, mask=rows < B)
    if KIND == 1:
        tl.store(slopes + split * B + rows, slope, mask=rows < B)


def log_partition(queries: Tensor, labels: Tensor, pairs: TiledPairs, temperature: float, exclude: bool) -> Tensor:
    """Return log Σ_j e^{s_ij/τ} (B), float64, at any norm; with `exclude` over j ∉ P_i alone, −∞ where nothing is left."""
    (batch, dimension), length = queries.shape, len(labels)
    blocks = triton.cdiv(batch, pairs.block)
    parts = splits(queries.device, blocks, triton.cdiv(length, 128))
    tops = torch.empty(parts, batch, dtype=torch.float32, device=queries.device)
    totals = torch.empty_like(tops)
    partition_kernel[(blocks, parts)](
        queries,
        labels,
        *pairs.tiled(),
        tops,
        totals,
        batch,
        length,
        pairs.strips,
        LOG2E / temperature,
        D=dimension,
        EXCLUDE=exclude,
        STRIP=STRIP,
        BLOCK_B=pairs.block,
        PRECISION=precision(queries),
    )
    return log_of_sums(tops, totals, temperature)


def weigh(
    queries: Tensor,
    labels: Tensor,
    pairs: TiledPairs,
    span: tuple[int, int],
    kind: int,
    scale: float,
    shifts: Tensor,
    exclude: bool = False,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the row sums (B) that `weigh_kernel` names over the labels of `span`, float64, and write `weights` if given.

    `weights` is a (B, ≥ span) view of the operands' type, whole rows apart.
    """
    (batch, dimension), (begin, end) = queries.shape, span
    blocks = triton.cdiv(batch, pairs.block)
    parts = splits(queries.device, blocks, triton.cdiv(end - begin, 128))
    sums = torch.empty(parts, batch, dtype=torch.float32, device=queries.device)
    slopes = torch.empty_like(sums) if kind == SLOPE else sums
    weigh_kernel[(blocks, parts)](
        queries,
        labels,
        *pairs.tiled(),
        shifts,
        queries if weights is None else weights,
        sums,
        slopes,
        batch,
        begin,
        end,
        0 if weights is None else weights.stride(0),
        pairs.strips,
        scale,
        D=dimension,
        KIND=kind,
        EXCLUDE=exclude,
        STORE=weights is not None,
        STRIP=STRIP,
        BLOCK_B=pairs.block,
        PRECISION=precision(queries),
    )
    return sums.double().sum(0), slopes.double().sum(0)


def slabs(length: int, batch: int, item_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the (begin, end) of label slabs of about SLAB_BYTES of weights (B, end − begin), whole tiles each."""
    step = max(1, SLAB_BYTES // (item_bytes * batch * WIDEST)) * WIDEST
    for begin in range(0, length, step):
        yield begin, min(begin + step, length)


def room(queries: Tensor, span: tuple[int, int]) -> Tensor:
    """Return an empty (B, end − begin) of the operands' type whose rows start at whole 32 bytes, as fast products want."""
    width = span[1] - span[0]
    return queries.new_empty(len(queries), triton.cdiv(width, 16) * 16)[:, :width]


def products_with(
    weights: Tensor, queries: Tensor, labels: Tensor, span: tuple[int, int], of_queries: Tensor, of_labels: Tensor
) -> None:
    """Add weights @ labels[span] to `of_queries` (B, D) and write weights.T @ queries into `of_labels[span]`, float32."""
    begin, end = span
    of_queries += product(weights, labels[begin:end])
    product(weights.T, queries, of_labels[begin:end])


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Return left @ right summed and returned in float32, into `out` where given."""
    if left.dtype == torch.float32 or left.device.type == "cpu":
        return torch.mm(left.float(), right.float(), out=out)
    if out is None:
        out = torch.empty(len(left), right.shape[1], dtype=torch.float32, device=left.device)
    return torch.ops.aten.mm.dtype_out(left, right, torch.float32, out=out)  # type: ignore[no-any-return]


def precision(operand: Tensor) -> str:
    """Return how tiles multiply: float32 as three tensor-core products, nearly as good as one; bfloat16 as it is."""
    return "tf32x3" if operand.dtype == torch.float32 else "tf32"
