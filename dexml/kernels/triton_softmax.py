"""Softmax in two passes on the GPU, its sums held as pairs (mantissa, exponent) that no finite input overflows.

e^x = m·2ⁿ with n = ⌊x·log₂e⌋ and m in [1, 2) (Dukhan and Ablavatski, 2020). n is a float64, in which it cannot overflow
either, and in which x·log₂e leaves a fraction worth having whatever the size of x.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexml.kernels.triton_tiles import LOG2E, PROGRAMS_PER_PROCESSOR, SIZES, splits, tuned

STEPS = 8  # blocks of numbers that one program reads, at least, before a row is worth splitting

CONFIGS = [
    triton.Config({"BLOCK": 1024}, num_warps=4),
    triton.Config({"BLOCK": 2048}, num_warps=4),
    triton.Config({"BLOCK": 2048}, num_warps=8),
    triton.Config({"BLOCK": 4096}, num_warps=8),
]


@triton.jit
def pair(x: tl.tensor, scale: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return (m, n), float32 and float64, with e^x = m·2ⁿ for x·scale = x·log₂e; −∞ is (0, −1e300)."""
    missing = x == float("-inf")
    power = tl.where(missing, 0.0, x.to(tl.float64)) * scale
    exponent = tl.floor(power)
    mantissa = tl.exp2((power - exponent).to(tl.float32))
    return tl.where(missing, 0.0, mantissa), tl.where(missing, -1e300, exponent)


@triton.jit
def power_of_two(exponent: tl.tensor) -> tl.tensor:
    """Return 2^exponent in float32 for a float64 exponent ≤ 0; 0 from −200 on, far below what float32 holds."""
    return tl.where(exponent < -200.0, 0.0, tl.exp2(tl.maximum(exponent, -200.0).to(tl.float32)))


@tuned(CONFIGS, key=["LONG"])
@triton.jit(do_not_specialize=SIZES)
def sum_kernel(
    scores: tl.tensor,  # (B, N)
    mantissas: tl.tensor,  # (B, splits) float32
    exponents: tl.tensor,  # (B, splits) float64
    N: tl.tensor,
    scale: tl.tensor,  # (1) float64: a number given by value would be rounded to float32
    LONG: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write Σ e^{x} of this program's blocks of one row as (mantissa, exponent)."""
    row, split, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    totals = tl.zeros((BLOCK,), dtype=tl.float32)
    highest = tl.full((BLOCK,), -1e300, dtype=tl.float64)
    factor = tl.load(scale)
    for block in range(split, tl.cdiv(N, BLOCK), parts):
        places = block * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(scores + row * N + places, mask=places < N, other=float("-inf"))
        mantissa, exponent = pair(x, factor)
        higher = tl.maximum(highest, exponent)
        totals = totals * power_of_two(highest - higher) + mantissa * power_of_two(exponent - higher)
        highest = higher
    top = tl.max(highest, 0)
    tl.store(mantissas + row * parts + split, tl.sum(totals * power_of_two(highest - top), 0))
    tl.store(exponents + row * parts + split, top)


@tuned(CONFIGS, key=["LONG"])
@triton.jit(do_not_specialize=SIZES)
def divide_kernel(
    scores: tl.tensor,  # (B, N)
    mantissas: tl.tensor,  # (B) float32
    exponents: tl.tensor,  # (B) float64
    result: tl.tensor,  # (B, N) float32
    N: tl.tensor,
    scale: tl.tensor,  # (1) float64: a number given by value would be rounded to float32
    LONG: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write e^{x} / Σ, with Σ = mantissa·2^exponent; 0 where the sum is 0."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.load(mantissas + row)
    highest = tl.load(exponents + row)
    factor = tl.load(scale)
    inverse = tl.where(total == 0.0, 0.0, 1.0 / tl.where(total == 0.0, 1.0, total))
    for block in range(tl.program_id(1), tl.cdiv(N, BLOCK), tl.num_programs(1)):
        places = block * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(scores + row * N + places, mask=places < N, other=float("-inf"))
        mantissa, exponent = pair(x, factor)
        tl.store(result + row * N + places, mantissa * inverse * power_of_two(exponent - highest), mask=places < N)


def softmax(scores: Tensor, temperature: float) -> Tensor:
    """Return torch.softmax(scores/τ, -1), float32; two reads and one write of memory. A row of −∞ alone gives zeros."""
    if scores.numel() == 0:
        return torch.zeros(scores.shape, dtype=torch.float32, device=scores.device)
    length = scores.shape[-1]
    flat = scores.detach().contiguous().reshape(-1, length)
    batch = len(flat)
    parts = splits(flat.device, triton.cdiv(batch, PROGRAMS_PER_PROCESSOR), triton.cdiv(length, 1024 * STEPS))
    mantissas = torch.empty(batch, parts, dtype=torch.float32, device=flat.device)
    exponents = torch.empty(batch, parts, dtype=torch.float64, device=flat.device)
    scale = torch.full((1,), LOG2E / temperature, dtype=torch.float64, device=flat.device)
    long = length > 1024 * STEPS
    sum_kernel[(batch, parts)](flat, mantissas, exponents, length, scale, LONG=long)
    highest = exponents.amax(1)
    total = (mantissas * torch.exp2(exponents - highest[:, None])).sum(1).float()
    result = torch.empty(flat.shape, dtype=torch.float32, device=flat.device)
    divide_kernel[(batch, parts)](flat, total, highest, result, length, scale, LONG=long)
    return result.reshape(scores.shape)
