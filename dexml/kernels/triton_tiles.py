"""What the Triton kernels share: tiles of scores, how they are tuned, and how a launch is spread over the card.

D is a compile-time constant everywhere: models have one dimension, and the compiler then knows how rows are aligned.
Label numbers stay below 2³¹; offsets into (L, D) do not, and are int64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexml.errors import InputError

LOG2E = 1.4426950408889634
MOST_LABELS = 2**31 - 1024  # label numbers are int32 inside the kernels, with room for one tile past the end
PROGRAMS_PER_PROCESSOR = 4
# Arguments that a launch must not turn into constants when they happen to be 1, or recompile for when 16 divides them.
SIZES = ("B", "L", "K", "N", "count", "groups", "strips", "begin", "end")


def interpreted() -> bool:
    """Return whether kernels defined now run in Triton's interpreter (TRITON_INTERPRET=1) instead of on a GPU."""
    return bool(triton.knobs.runtime.interpret)


def tuned(configs: list[triton.Config], key: list[str]) -> Callable[[Any], Any]:
    """Return triton.autotune over `configs` by `key`; the interpreter has nothing to time and takes the first."""
    return triton.autotune(configs[:1] if interpreted() else configs, key=key)  # type: ignore[no-any-return]


def splits(device: torch.device, blocks: int, tiles: int) -> int:
    """Return into how many programs the `tiles` of labels of each of `blocks` query blocks are spread."""
    processors = 2
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(tiles, PROGRAMS_PER_PROCESSOR * processors // max(1, blocks), 65535))


def block_of_queries(batch: int) -> int:
    """Return how many queries one program holds: a power of two from 16, the narrowest matrix product, to 128."""
    return min(128, max(16, 1 << (batch - 1).bit_length())) if batch else 16


def check_size(labels: Tensor) -> None:
    """Raise InputError when label numbers would not fit the int32 of the kernels."""
    if len(labels) > MOST_LABELS:
        raise InputError(f"the triton kernels number at most {MOST_LABELS} labels on one card, got {len(labels)}")


def log_of_sums(top: Tensor, total: Tensor, temperature: float) -> Tensor:
    """Return log Σ e^{s/τ} (B), float64, of partial maxima `top` and sums `total` = Σ e^{(s − top)/τ}, both (splits, B)."""
    parts = top.double() / temperature + total.double().log()  # log 0 = −∞ where a split had no label
    return torch.logsumexp(parts, 0)


INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def multiply(left: tl.tensor, right: tl.tensor, total: tl.tensor, PRECISION: tl.constexpr) -> tl.tensor:
    """Return total + left @ right in float32; PRECISION says how float32 operands are multiplied."""
    if INTERPRETED:  # its bfloat16 numbers are bit patterns, which tl.dot there would multiply as integers
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def rest(value: tl.tensor, high: tl.tensor) -> tl.tensor:
    """Return value − high as bfloat16, for a float32 value and its bfloat16 part `high`."""
    low = value - high.to(tl.float32)
    if INTERPRETED:  # its conversion truncates where that of the GPU rounds, which a long sum would show
        return low
    else:  # a branch that the compiler does not read must not return a second type
        return low.to(tl.bfloat16)


@triton.jit
def tile_of_scores(
    queries: tl.tensor,
    labels: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    B: tl.tensor,
    L: tl.tensor,
    D: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Return queries[rows] @ labels[columns].T, float32 (BLOCK_B, BLOCK_L).

    Rows and columns past the end repeat the last one, which costs no mask in the loop; the caller drops their scores.
    """
    inside = tl.minimum(rows, B - 1).to(tl.int64)
    within = tl.minimum(columns, L - 1).to(tl.int64)
    scores = tl.zeros((BLOCK_B, BLOCK_L), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        if D % BLOCK_D == 0:
            left = tl.load(queries + inside[:, None] * D + d[None, :])
            right = tl.load(labels + within[None, :] * D + d[:, None])
        else:
            left = tl.load(queries + inside[:, None] * D + d[None, :], mask=d[None, :] < D, other=0.0)
            right = tl.load(labels + within[None, :] * D + d[:, None], mask=d[:, None] < D, other=0.0)
        scores = multiply(left, right, scores, PRECISION)
    return scores


@triton.jit
def running_sum(
    scores: tl.tensor, top: tl.tensor, total: tl.tensor, scale: tl.tensor, AXIS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return `top` and `total` = Σ 2^{(s − top)·scale} with a tile of scores added; −∞ scores add nothing."""
    higher = tl.maximum(top, tl.max(scores, AXIS))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    parts = tl.sum(tl.exp2((scores - tl.expand_dims(base, AXIS)) * scale), AXIS)
    return higher, total * tl.exp2((top - base) * scale) + parts
