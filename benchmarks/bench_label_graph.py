"""TOPO on linear models of random graphs: SHD, loss by round, deliberately bad orders, and what standardised data leave of it.

python benchmarks/bench_label_graph.py [--nodes 20] [--graphs 10] [--rows 1000] [--data DATA]
Prints the tables and writes benchmarks/results/label_graph.json; a minute on one core.

Graphs ER-2 and ER-4, weights ±[0.5, 2], noise N(0, 1): the variances are equal, which is what makes the graph known from a
squared loss. Orders to start from are random, or bad on purpose: nodes by falling variance. With --data, co-occurrence of the
50 most frequent labels of a data set too, by both losses.
"""

from __future__ import annotations

import argparse
import graphlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, write_result
from rich.console import Console
from rich.table import Table

from dexml.analysis.dags import simulated, structural_distance, thresholded, varsortability
from dexml.analysis.topo import Logistic, Ordered, Squared, topo
from training.analysis.label_graph import THRESHOLDS

THRESHOLD = 0.3
LABELS = 50


def standardised(data: Any) -> Any:
    """Return columns of mean 0 and variance 1."""
    return (data - data.mean(axis=0)) / data.std(axis=0)


def by_variance(data: Any) -> Any:
    """Return the columns by falling variance: children first, mostly."""
    return np.argsort(-data.var(axis=0)).astype(np.int64)


def true_order(weights: Any) -> Any:
    """Return an order with every node behind its parents."""
    parents = {node: set(np.flatnonzero(weights[:, node]).tolist()) for node in range(len(weights))}
    return np.array(list(graphlib.TopologicalSorter(parents).static_order()), dtype=np.int64)


def judged(nodes: int, degree: int, rows: int, seed: int) -> dict[str, Any]:
    """Return what the search finds on one graph, from a random order, from a bad one, and on standardised data."""
    generator = np.random.default_rng(seed)
    weights, data = simulated(nodes, degree, rows, generator)
    order = generator.permutation(nodes).astype(np.int64)
    start = time.perf_counter()
    found = topo(Squared(data), order)
    seconds = time.perf_counter() - start
    bad = topo(Squared(data), by_variance(data))
    scaled = topo(Squared(standardised(data)), order)
    return {
        "degree": degree,
        "seed": seed,
        "edges": int((weights != 0).sum()),
        "shd": _distance(weights, found),
        "rounds": len(found.losses) - 1,
        "falls": bool((np.diff(found.losses) < 0).all() and (np.diff(bad.losses) < 0).all()),
        "loss": found.losses[-1],
        "true_loss": float(Squared(data).start(true_order(weights)).sum()),
        "bad": [bad.losses[0], bad.losses[-1]],
        "shd_from_bad": _distance(weights, bad),
        "shd_standardised": _distance(weights, scaled),
        "varsortability": varsortability(weights, data.var(axis=0)),
        "seconds": seconds,
    }


def _distance(weights: Any, found: Ordered) -> int:
    return structural_distance(weights, thresholded(found.weights, THRESHOLD))


def of_labels(path: Path) -> list[dict[str, Any]]:
    """Return the search on co-occurrence of a data set's most frequent labels: edges, losses, and how far both scales agree."""
    from data import open_format

    positives = open_format(path).read("train").positives
    frequent = np.sort(np.argsort(-positives.counts(), kind="stable")[:LABELS])
    data = positives.matrix()[:, frequent].toarray().astype(np.float64)
    found, graphs = [], {}
    for name, loss in (
        ("squared", Squared(data)),
        ("squared, standardised", Squared(standardised(data))),
        ("logistic", Logistic(data)),
    ):
        start = time.perf_counter()
        ordered = topo(loss, np.arange(LABELS, dtype=np.int64))
        graphs[name] = thresholded(ordered.weights, THRESHOLDS[name.split(",")[0]])
        found.append(
            {
                "loss": name,
                "from": ordered.losses[0],
                "to": ordered.losses[-1],
                "rounds": len(ordered.losses) - 1,
                "edges": int((graphs[name] != 0).sum()),
                "shd_to_first": structural_distance(graphs[name], graphs["squared"]),
                "varsortability": varsortability(graphs[name], data.var(axis=0)),
                "seconds": time.perf_counter() - start,
            }
        )
    return found


def _printed(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for head in rows[0]:
        table.add_column(head.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()))
    Console().print(table)


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--graphs", type=int, default=10)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {"machine": describe(), "nodes": given.nodes, "rows": given.rows, "threshold": THRESHOLD}
    graphs = [judged(given.nodes, degree, given.rows, seed) for degree in (2, 4) for seed in range(given.graphs)]
    summed = []
    for degree in (2, 4):
        own = [graph for graph in graphs if graph["degree"] == degree]
        distances = [np.array([graph[key] for graph in own]) for key in ("shd", "shd_from_bad", "shd_standardised")]
        summed.append(
            {
                "graphs": f"ER-{degree}",
                "SHD, most": int(distances[0].max()),
                "SHD 0": f"{int((distances[0] == 0).sum())}/{len(own)}",
                "loss falls": f"{sum(graph['falls'] for graph in own)}/{len(own)}",
                "at most the true order's": f"{sum(graph['loss'] <= graph['true_loss'] for graph in own)}/{len(own)}",
                "bad order bettered": f"{sum(graph['bad'][1] < graph['bad'][0] for graph in own)}/{len(own)}",
                "SHD from bad, most": int(distances[1].max()),
                "SHD standardised, median": float(np.median(distances[2])),
                "varsortability": float(np.mean([graph["varsortability"] for graph in own])),
                "seconds": float(np.median([graph["seconds"] for graph in own])),
            }
        )
    _printed(f"{given.nodes} nodes, {given.rows} rows, |W| > {THRESHOLD}", summed)
    result |= {"graphs": graphs, "summary": summed}
    if given.data is not None:
        result["labels"] = of_labels(given.data)
        _printed(f"{LABELS} labels of {given.data.name}", result["labels"])
    print(write_result("label_graph", result))


if __name__ == "__main__":
    main()
