"""Equiangular basis vectors (Shen, Sun and Wei, CVPR 2023): fixed unit codes for labels that have no text to be known by.

N codes in D dimensions, no two of which come near each other: max |⟨v_i, v_j⟩| falls to within a small factor of Welch's bound,
below which no N vectors can get. A label has no parameter then, and a new label is one more vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

STEPS = 200
OPERATIONS = 1e13  # of all steps together, a few minutes: with very many labels, codes stay what random vectors are
SLICE_BYTES = 32 << 20  # of products at a time
NEAR = 1.2  # times Welch's bound: what is below it is left alone
SHARE = 0.7  # of the largest product: the pairs above it are pushed first, and all at once only where N is near D
STRIDE = 2.0  # of a step, in units of the products' largest eigenvalue, which is about N/D


def welch(count: int, dimension: int) -> float:
    """Return √((N − D)/(D(N − 1))), the least that max |cos| of `count` unit vectors can be; 0 where they fit at right angles.

    Welch, IEEE Transactions on Information Theory 20, 1974.
    """
    return math.sqrt((count - dimension) / (dimension * (count - 1))) if count > dimension else 0.0


def code_book(
    count: int,
    dimension: int,
    *,
    seed: int = 0,
    steps: int = STEPS,
    kept: Tensor | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Return unit codes float32 (count, dimension), the same for the same seed; at right angles where they fit.

    The first are the unit rows `kept` (K, D), which stay as they are. Gradient steps on Σ max(0, |⟨v_i, v_j⟩| − t)², all rows
    at once, a slice of products at a time, 4·count²·dimension operations each. `report` gets the number of steps done.
    """
    codes = normalize(torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)), dim=1)
    first = 0 if kept is None else len(kept)
    if kept is not None:
        codes[:first] = kept
    elif count <= dimension:
        # The signs of R make the factorisation, and so the codes, unique.
        basis, upper = torch.linalg.qr(codes.T)
        fitting: Tensor = (basis * upper.diagonal().sign()).T.contiguous()
        return fitting
    steps = min(steps, int(OPERATIONS / (4 * count * (count - first) * dimension))) if first < count else 0
    least, best = NEAR * welch(count, dimension), codes
    nearest = most = largest(codes, first)
    for step in range(steps):
        moved, now = codes.clone(), 0.0
        stride, threshold = STRIDE * min(1.0, dimension / count), max(least, SHARE * nearest)
        for some, products in _products(codes, first):
            now = max(now, products.abs().max().item())
            pushes = products.sub_(products.clamp(-threshold, threshold)) @ codes
            moved[some] = normalize(codes[some] - stride * pushes, dim=1)
        if now < most:
            most, best = now, codes
        if now <= least:
            break
        codes, nearest = moved, now
        report(step + 1)
    return best


def largest(codes: Tensor, first: int = 0) -> float:
    """Return max |⟨v_i, v_j⟩| over i ≠ j, i ≥ `first`, of unit rows (N, D); 0 of fewer than two."""
    return max((products.abs().max().item() for _, products in _products(codes, first)), default=0.0)


def _products(codes: Tensor, first: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the rows from `first` on, and their products with all rows, 0 with themselves."""
    rows = max(1, SLICE_BYTES // (4 * max(1, len(codes))))
    for start in range(first, len(codes), rows):
        some = slice(start, min(start + rows, len(codes)))
        products = codes[some] @ codes.T
        products[torch.arange(some.stop - start), torch.arange(start, some.stop)] = 0
        yield some, products
