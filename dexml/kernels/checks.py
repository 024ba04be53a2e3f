"""What every backend asks of a call before it computes: shapes, finite numbers, a temperature above zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dexml.errors import InputError
from dexml.types import Positives

COPIES = ("auto", "none", "int16", "int8")


def check_labels(labels: Tensor, copy: str) -> None:
    """Raise InputError unless `labels` is a finite floating (L, D) with L, D ≥ 1 and `copy` a known scanning copy."""
    if copy not in COPIES:
        raise InputError(f"unknown scanning copy {copy!r} (known: {', '.join(COPIES)})")
    if labels.ndim != 2 or not labels.is_floating_point() or 0 in labels.shape:
        raise InputError(f"labels must be a floating (L, D) with L, D >= 1, got {tuple(labels.shape)} {labels.dtype}")
    if not bool(torch.isfinite(labels.sum())) and not bool(torch.isfinite(labels).all()):
        raise InputError("labels must be finite, found NaN or infinity")


def check_queries(queries: Tensor, dimension: int, temperature: float) -> None:
    """Raise InputError unless `queries` is a finite floating (B, D) and `temperature` a finite number above 0."""
    if queries.ndim != 2 or not queries.is_floating_point() or queries.shape[1] != dimension:
        raise InputError(f"queries must be a floating (B, {dimension}), got {tuple(queries.shape)} {queries.dtype}")
    check_temperature(temperature)
    if not math.isfinite(float(queries.detach().sum())) and not bool(torch.isfinite(queries).all()):
        row = int((~torch.isfinite(queries).all(1)).nonzero()[0])
        raise InputError(f"queries must be finite, found NaN or infinity in row {row}")


def check_products(queries: Tensor, labels: Tensor, temperature: float) -> None:
    """Raise InputError unless `labels` is (L, D), `queries` a finite floating (B, D) and `temperature` a number above 0."""
    if labels.ndim != 2:
        raise InputError(f"labels must be (L, D), got {tuple(labels.shape)}")
    check_queries(queries, labels.shape[1], temperature)


def check_temperature(temperature: float) -> None:
    """Raise InputError unless `temperature` is a finite number above 0."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise InputError(f"temperature must be a finite number above 0, got {temperature}")


def check_k(k: int) -> None:
    """Raise InputError unless `k` is at least 1."""
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")


def check_ids(ids: Tensor, batch: int, labels: int) -> None:
    """Raise InputError unless `ids` is an int64 (B, K) of label numbers in [−1, L)."""
    if ids.ndim != 2 or ids.dtype != torch.int64 or len(ids) != batch:
        raise InputError(f"candidate ids must be an int64 ({batch}, K), got {tuple(ids.shape)} {ids.dtype}")
    if ids.numel() and (int(ids.min()) < -1 or int(ids.max()) >= labels):
        raise InputError(f"candidate ids must lie in [-1, {labels}), got {int(ids.min())} to {int(ids.max())}")


def check_pairs(queries: Tensor, labels: Tensor, positives: Positives) -> None:
    """Raise InputError unless `positives` is (B, L) for `queries` (B, D) and `labels` (L, D)."""
    if queries.ndim != 2 or labels.ndim != 2 or queries.shape[1] != labels.shape[1]:
        raise InputError(f"queries {tuple(queries.shape)} and labels {tuple(labels.shape)} must be (B, D) and (L, D)")
    if len(positives) != len(queries) or positives.num_labels != len(labels):
        raise InputError(
            f"positives ({len(positives)}, {positives.num_labels}) must have the shape of the scores "
            f"({len(queries)}, {len(labels)})"
        )
