"""Figures by how often a label was seen in training: ten equal groups of labels, and head, torso and tail."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dexml.metrics.tally import Tally
from dexml.positives import Int64Array

HEAD, TORSO = 100, 10  # training rows from which on a label belongs to the head, to the torso


@dataclass(frozen=True)
class Group:
    """Labels of like frequency: `seen` times in training (least and most), `true` times in the split.

    By cutoff, in percent: `recall`, the share of those that were found; `precision`, the share of the group's answers that
    were right; `part`, what the group adds to P@k, which is the sum of the groups' parts.
    """

    name: str
    labels: int
    seen: tuple[int, int]
    true: int
    recall: dict[int, float]
    precision: dict[int, float]
    part: dict[int, float]

    def as_json(self) -> dict[str, Any]:
        """Return the group as a document."""
        return asdict(self)


def deciles(tally: Tally, train_counts: Int64Array) -> list[Group]:
    """Return ten groups of as many labels each, the most frequent first, of equal counts the smaller number."""
    order = np.argsort(-train_counts, kind="stable")
    return [_group(f"{number}", part, tally, train_counts) for number, part in enumerate(np.array_split(order, 10), 1)]


def bands(tally: Tally, train_counts: Int64Array) -> list[Group]:
    """Return the head (HEAD training rows or more), the torso (TORSO or more) and the tail."""
    head, torso = train_counts >= HEAD, (train_counts >= TORSO) & (train_counts < HEAD)
    parts = {"head": head, "torso": torso, "tail": train_counts < TORSO}
    return [_group(name, np.flatnonzero(part), tally, train_counts) for name, part in parts.items()]


def _group(name: str, labels: Int64Array, tally: Tally, train_counts: Int64Array) -> Group:
    true = int(tally.true[labels].sum())
    right, said = tally.hits[:, labels].sum(axis=1).tolist(), tally.answers[:, labels].sum(axis=1).tolist()
    counts = train_counts[labels]
    return Group(
        name,
        len(labels),
        (int(counts.min(initial=0 if len(counts) == 0 else counts[0])), int(counts.max(initial=0))),
        true,
        {k: _percent(hit, true) for k, hit in zip(tally.cutoffs, right, strict=True)},
        {k: _percent(hit, of) for k, hit, of in zip(tally.cutoffs, right, said, strict=True)},
        {k: _percent(hit, tally.rows * k) for k, hit in zip(tally.cutoffs, right, strict=True)},
    )


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0
