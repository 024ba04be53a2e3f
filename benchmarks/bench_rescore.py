"""Candidates rescored where they lie, against the gather that most people write; one process, called in turn.

python benchmarks/bench_rescore.py [--labels 1000000] [--batch 64] [--candidates 500] [--repeats 9]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from machine import describe, write_result

from dexml.kernels import choose

TEMPERATURE = 0.05


def by_numpy(queries: Any, labels: Any, ids: Any) -> Any:
    """Return ids, scores and probabilities by a (B, K, D) gather, einsum, softmax and argsort."""
    scores = np.einsum("bd,bkd->bk", queries, labels[ids], optimize=True)
    shifted = scores / TEMPERATURE
    shifted = np.exp(shifted - shifted.max(1, keepdims=True))
    order = np.argsort(-scores, axis=1, kind="stable")
    return tuple(np.take_along_axis(part, order, 1) for part in (ids, scores, shifted / shifted.sum(1, keepdims=True)))


def by_torch(queries: Any, labels: Any, ids: Any) -> Any:
    """Return the same by torch."""
    scores, order = torch.sort(torch.bmm(labels[ids], queries[:, :, None])[:, :, 0], dim=1, descending=True, stable=True)
    return ids.gather(1, order), scores, torch.softmax(scores / TEMPERATURE, 1)


def main() -> None:
    """Measure, print ratios and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    random = torch.Generator().manual_seed(0)
    labels = torch.empty(given.labels, given.dimension).normal_(generator=random)
    labels /= torch.linalg.vector_norm(labels, dim=1, keepdim=True)
    queries = torch.nn.functional.normalize(torch.randn(given.batch, given.dimension, generator=random), dim=1)
    kernels = choose(backend="numba")
    prepared = kernels.prepare(labels, "none")

    def dexml(_queries: Any, _labels: Any, ids: Any) -> Any:
        topk = kernels.rescore(queries, prepared, torch.from_numpy(ids), TEMPERATURE)
        return topk.ids, topk.scores, topk.probabilities(TEMPERATURE)

    ways: dict[str, Callable[[Any, Any, Any], Any]] = {
        "dexml": dexml,
        "numpy": by_numpy,
        "torch": lambda q, y, ids: by_torch(queries, labels, torch.from_numpy(ids)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    rows, table = queries.numpy(), labels.numpy()
    fresh = np.random.default_rng(0)
    for turn in range(given.repeats + 1):
        # New candidates each turn: no way finds their rows in a cache.
        ids = np.stack([fresh.choice(given.labels, given.candidates, replace=False) for _ in range(given.batch)])
        answers = {}
        for name, way in ways.items():
            start = time.perf_counter()
            answers[name] = way(rows, table, ids)
            if turn:
                times[name].append(1000 * (time.perf_counter() - start))
        for name in ways:
            assert np.allclose(np.asarray(answers[name][1]), np.asarray(answers["numpy"][1]), atol=1e-5), name
            assert np.allclose(np.asarray(answers[name][2]), np.asarray(answers["numpy"][2]), rtol=1e-3, atol=1e-7), name
    base = statistics.median(times["numpy"])
    lines = [{"way": name, "ratio": base / statistics.median(t), "ms": statistics.median(t)} for name, t in times.items()]
    for line in lines:
        print(f"{line['ratio']:6.2f}x  {line['way']:8} {line['ms']:9.2f} ms")
    print(write_result("rescore", {"machine": describe(), "setting": vars(given), "table": lines}))


if __name__ == "__main__":
    main()
