"""Directed acyclic graphs as weights (d, d), [i, j] of the edge i → j: how two differ, what they rest on, made at random."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dexml.types import Int64Array

Float64Array = npt.NDArray[np.float64]


def thresholded(weights: Float64Array, least: float) -> Float64Array:
    """Return the weights with those of at most `least` in size set to 0."""
    return np.where(np.abs(weights) > least, weights, 0.0)


def structural_distance(one: Float64Array, other: Float64Array) -> int:
    """Return SHD: the edges to add, to take away or to turn round until both graphs have the same; a turned one counts once."""
    edges, others = one != 0, other != 0
    return int(((edges | edges.T) != (others | others.T))[np.triu_indices(len(one), 1)].sum()) + int(
        (edges & ~others & others.T & ~edges.T).sum()
    )


def varsortability(weights: Float64Array, variances: Float64Array) -> float:
    """Return the share of directed paths of each length whose end varies more than their start; equal variances count half.

    Near 1, sorting by variance alone would order the nodes, and a squared loss reads little else (Reisach, Seiler & Weichwald,
    "Beware of the Simulated DAG!", NeurIPS 2021). NaN for a graph without an edge.
    """
    edges = weights != 0
    ratio = variances[None, :] / np.maximum(variances[:, None], 1e-300)
    right = np.where(np.isclose(ratio, 1.0, rtol=1e-9), 0.5, ratio > 1)
    reached, total, found = edges, 0, 0.0
    while reached.any():
        total += int(reached.sum())
        found += float(right[reached].sum())
        reached = (reached.astype(np.int64) @ edges.astype(np.int64)) > 0
    return found / total if total else float("nan")


def levels(weights: Float64Array, order: Int64Array) -> Int64Array:
    """Return how many edges the longest path to each node has (d); `order` has every node behind its parents."""
    found = np.zeros(len(weights), dtype=np.int64)
    for node in order.tolist():
        parents = np.flatnonzero(weights[:, node])
        found[node] = 1 + found[parents].max() if len(parents) else 0
    return found


def simulated(nodes: int, degree: int, rows: int, generator: np.random.Generator) -> tuple[Float64Array, Float64Array]:
    """Return weights (d, d) of an Erdős–Rényi graph ER-`degree` and data (rows, d) from it: what NOTEARS is judged on.

    Each pair has an edge with the probability that makes `degree`·d of them, along a random order, of ±[0.5, 2]; the noise is
    N(0, 1).
    """
    share = min(1.0, 2 * degree / (nodes - 1))
    order = generator.permutation(nodes)
    upper = np.triu(generator.random((nodes, nodes)) < share, 1)
    sizes = generator.uniform(0.5, 2.0, (nodes, nodes)) * generator.choice([-1.0, 1.0], (nodes, nodes))
    weights = np.zeros((nodes, nodes))
    weights[np.ix_(order, order)] = upper * sizes
    noise = generator.standard_normal((rows, nodes))
    return weights, np.asarray(np.linalg.solve((np.eye(nodes) - weights).T, noise.T).T, dtype=np.float64)
