"""A validation split of the training rows in which no label set stands on both sides."""

from __future__ import annotations

import math

import numpy as np

from dexml.errors import InputError
from dexml.types import Int64Array, Positives


def split_by_labels(
    positives: Positives, fraction: float, seed: int = 0, max_rows: int | None = None
) -> tuple[Int64Array, Int64Array]:
    """Return (train rows, validation rows), sorted, together all N rows; deterministic in (positives, fraction, seed).

    Rows with identical label sets fall on the same side: titles of one occupation share their labels, and a validation
    row whose twin was trained on measures memory. Groups are drawn in random order while they fit into
    min(⌈fraction · N⌉, max_rows) rows, so the validation side may be smaller, or empty where no group fits. Rows
    without positives stay in train. Raises InputError unless 0 ≤ fraction < 1.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"validation: the fraction must lie in [0, 1), got {fraction}")
    room = math.ceil(fraction * len(positives))
    if max_rows is not None:
        room = min(room, max_rows)
    groups: dict[bytes, list[int]] = {}
    for row in range(len(positives)):
        if len(labels := positives.row(row)):
            groups.setdefault(labels.tobytes(), []).append(row)
    members = list(groups.values())
    chosen: list[int] = []
    for group in np.random.default_rng(seed).permutation(len(members)).tolist() if len(members) > 1 else ():
        if len(members[group]) <= room - len(chosen):
            chosen.extend(members[group])
    validation = np.sort(np.array(chosen, dtype=np.int64))
    return np.setdiff1d(np.arange(len(positives), dtype=np.int64), validation, assume_unique=True), validation
