"""Numbers of a few bits: symmetric, a step per row, in training with the gradient of what is rounded, and packed for files.

Q(w) = s · clip(round(w/s), −q, q) with q = 2^(bits−1) − 1. A row's step s is the better of two: the one that reaches its
largest number, max|w|/q; and the one that is best for normally distributed numbers of the row's mean square (J. Max, 1960):
where bits are few, cutting off a few numbers costs less than coarse steps for all the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

STEPS: Mapping[int, float] = {2: 1.24, 3: 0.654, 4: 0.354, 5: 0.192, 6: 0.104, 8: 0.0314}  # of numbers of mean square 1
CODES, SCALES, SHAPE = ".codes", ".steps", ".shape"  # after the names of packed tensors


def codes(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the whole numbers (n, D) in −q … q, as floats, and the steps (n, 1) of rows (n, D); of zeros both are zeros."""
    most = 2 ** (bits - 1) - 1
    steps = rows.abs().amax(dim=1, keepdim=True) / most, STEPS[bits] * rows.square().mean(dim=1, keepdim=True).sqrt()
    (one, cost), (other, of_other) = (_codes(rows, step, most) for step in steps)
    better = of_other < cost
    return torch.where(better, other, one), torch.where(better, steps[1], steps[0])


def _codes(rows: Tensor, step: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the codes at a step per row, and the squared error that each row pays (n, 1)."""
    whole = (rows / step.clamp(min=torch.finfo(rows.dtype).tiny)).round_().clamp_(-most, most)
    return whole, torch.addcmul(rows, whole, step, value=-1).square_().sum(dim=1, keepdim=True)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, bits: int) -> Tensor:
        whole, step = codes(rows, bits)
        return whole.mul_(step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def rounded(rows: Tensor, bits: int | None) -> Tensor:
    """Return Q(rows) (n, D), whose gradient is handed on to `rows` as it is (straight-through); without bits, the rows."""
    if bits is None:
        return rows
    straight: Tensor = _Rounded.apply(rows, bits)  # type: ignore[no-untyped-call]
    return straight


def packed(tensors: Mapping[str, Tensor], bits: int | None) -> dict[str, Tensor]:
    """Return tensors for a file: each matrix as its codes, `bits` a number, and the steps; without bits, and others, as is."""
    if bits is None:
        return dict(tensors)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            found[name] = tensor
            continue
        whole, step = codes(tensor, bits)
        raised = (whole.to(torch.int16).numpy() + 2 ** (bits - 1)).astype(np.uint8)
        planes = (raised.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8)) & 1
        found[name + CODES] = torch.from_numpy(np.packbits(planes.reshape(-1)))
        found[name + SCALES] = step.contiguous()
        found[name + SHAPE] = torch.tensor([*tensor.shape, bits])
    return found


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `packed` was given, its matrices rounded."""
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith((CODES, SCALES, SHAPE))}
    for name in (key.removesuffix(SHAPE) for key in tensors if key.endswith(SHAPE)):
        rows, width, bits = tensors[name + SHAPE].tolist()
        planes = np.unpackbits(tensors[name + CODES].numpy(), count=rows * width * bits).reshape(-1, bits)
        raised = (planes << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.int16)
        whole = torch.from_numpy(raised - 2 ** (bits - 1)).float().reshape(rows, width)
        found[name] = whole * tensors[name + SCALES]
    return found
