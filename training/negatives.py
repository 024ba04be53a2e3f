"""Which labels a step scores when it does not score all: the batch's own positives, and hard negatives.

These are mined by a scan, or are the neighbours of a row's positives in a graph of labels.

A known positive of a row is a positive wherever it turns up, and a pair the data set excludes is never mined.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from dexml.kernels import choose
from dexml.metrics import hits
from dexml.types import Int64Array, Positives

BLOCK = 1024  # queries scanned at a time


def union(one: Positives, other: Positives) -> Positives:
    """Return the pairs (N, L) of either."""
    return Positives.from_matrix(one.matrix() + other.matrix())


def within(positives: Positives, columns: Int64Array) -> Positives:
    """Return the positives among `columns` (C, ascending label numbers), renumbered to 0 … C−1."""
    places = np.searchsorted(columns, positives.indices)
    kept = places < len(columns)
    kept[kept] = columns[places[kept]] == positives.indices[kept]
    kept_before = np.concatenate([[0], np.cumsum(kept)])
    weights = None if positives.weights is None else positives.weights[kept]
    return Positives(kept_before[positives.indptr].astype(np.int64), places[kept], len(columns), weights)


def sample_positives(positives: Positives, each: int, generator: np.random.Generator) -> Int64Array:
    """Return the labels of up to `each` positives of every row, drawn without replacement; a label can be named twice."""
    rows = np.repeat(np.arange(len(positives)), np.diff(positives.indptr))
    order = np.lexsort((generator.random(len(rows)), rows))  # shuffled within rows
    rank = np.arange(len(rows)) - positives.indptr[rows]
    return positives.indices[order[rank < each]]


def sample_mined(mined: Int64Array, each: int, generator: np.random.Generator) -> Int64Array:
    """Return the labels of up to `each` of every row of `mined` (B, depth; −1 = none), drawn without replacement."""
    keys = np.where(mined >= 0, generator.random(mined.shape), np.inf)
    chosen = np.take_along_axis(mined, np.argsort(keys, axis=1)[:, :each], axis=1)
    return chosen[chosen >= 0]


def neighbours(near: sp.csr_array, positives: Positives, barred: Positives, depth: int) -> Int64Array:
    """Return up to `depth` labels near each row's `positives` (N, L) that are not `barred`, int64 (N, depth), −1 = none left.

    `near` (L, L) is not 0 where two labels are joined; those joined to most of a row's positives come first.
    """
    own, near = (of.astype(bool).astype(np.int64) for of in (positives.matrix(), near))
    joined = sp.csr_array(own @ near)
    found = np.full((len(positives), depth), -1, dtype=np.int64)
    for row in range(len(positives)):
        part = slice(joined.indptr[row], joined.indptr[row + 1])
        labels, ties = joined.indices[part].astype(np.int64), joined.data[part]
        free = ~np.isin(labels, barred.row(row))
        labels, ties = labels[free], ties[free]
        best = labels[np.lexsort((labels, -ties))][:depth]
        found[row, : len(best)] = best
    return found


def mine(queries: Iterable[Tensor], labels: Tensor, known: Positives, depth: int) -> Int64Array:
    """Return the `depth` best labels of each query that are not `known` (N, L), int64 (N, depth), best first, −1 = none left.

    `queries` are rows (n, D) in blocks, N in all, and `labels` (L, D), on one device; the scan is exact.
    """
    kernels = choose(labels.device.type)
    prepared = kernels.prepare(labels)
    mined = np.full((len(known), depth), -1, dtype=np.int64)
    done = 0
    for part in queries:
        for block in torch.split(part, BLOCK):
            of_block = known.take(np.arange(done, done + len(block)))
            k = min(len(labels), depth + int(np.diff(of_block.indptr).max(initial=0)))
            ids = kernels.scan(block, prepared, k, 1.0).ids.cpu().numpy()
            barred = hits(ids, of_block) | (ids < 0)
            order = np.argsort(barred, axis=1, kind="stable")[:, :depth]  # what may stay, in its order, and then the rest
            kept = np.where(np.take_along_axis(barred, order, axis=1), -1, np.take_along_axis(ids, order, axis=1))
            mined[done : done + len(block), : kept.shape[1]] = kept
            done += len(block)
    return mined
