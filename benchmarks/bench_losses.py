"""Losses forward and backward against their published formulas written naively in torch: time, and memory beyond gradients.

python benchmarks/bench_losses.py [--batch 256] [--labels 131072] [--repeats 5]
python benchmarks/bench_losses.py --draw    # docs/img/losses.png from the JSON of the last run
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_result
from plots import ratio_bars
from torch import Tensor
from torch.nn.functional import normalize

from dexml.losses import LOSSES
from dexml.types import Positives

T, K, ALPHA = 0.05, 5, 2.0
NAMES = {"decoupled_softmax": "decoupled softmax", "soft_topk": f"soft top-{K}", "softmax": "softmax", "bce": "cross-entropy"}
Formula = Callable[[Tensor, Tensor, Tensor], Tensor]


def naive_decoupled(queries: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """DEXML's published form: positives out of the sum by a mask, then each against the rest."""
    scores = queries @ labels.T / T
    rest = torch.logsumexp(scores.masked_fill(mask, -torch.inf), 1)
    rows, columns = mask.nonzero(as_tuple=True)
    own = scores[rows, columns]
    losses = torch.logaddexp(own, rest[rows]) - own
    return (losses / mask.sum(1)[rows]).sum() / len(queries)


def naive_softmax(queries: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """−(1/B) Σ_i Σ_p log softmax."""
    return -torch.log_softmax(queries @ labels.T / T, 1)[mask].sum() / len(queries)


def naive_bce(queries: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Torch's binary cross-entropy with logits."""
    return torch.nn.functional.binary_cross_entropy_with_logits(queries @ labels.T / T, mask.float())


class _Threshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
        low, high = -scores.amax(1, keepdim=True) - 10 / ALPHA, -scores.amin(1, keepdim=True) + 10 / ALPHA
        for _ in range(32):
            middle = (low + high) / 2
            above = torch.sigmoid(ALPHA * (scores + middle)).sum(1, keepdim=True) > K
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        ctx.save_for_backward(scores, middle)
        return torch.sigmoid(ALPHA * (scores + middle)).log()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
        scores, t = ctx.saved_tensors
        sigmoid = torch.sigmoid(ALPHA * (scores + t))
        slopes, pulls = ALPHA * sigmoid * (1 - sigmoid), gradient * ALPHA * (1 - sigmoid)
        return pulls - slopes * pulls.sum(1, keepdim=True) / slopes.sum(1, keepdim=True)


def naive_soft_topk(queries: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """32 bisections for the threshold, as the reference implementation does."""
    logs: Tensor = _Threshold.apply(queries @ labels.T / T)  # type: ignore[no-untyped-call]
    rows, columns = mask.nonzero(as_tuple=True)
    return -(logs[rows, columns] / mask.sum(1)[rows]).sum() / len(queries)


NAIVE: dict[str, Formula] = {
    "decoupled_softmax": naive_decoupled,
    "soft_topk": naive_soft_topk,
    "softmax": naive_softmax,
    "bce": naive_bce,
}


def resident_mib() -> float:
    """Return the memory of this process that is in RAM, in MiB."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / 2**20


def peak_mib(step: Callable[[], None]) -> float:
    """Return how far a step raises the resident memory, sampled every millisecond."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before, peak, done = resident_mib(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident_mib() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    done.set()
    watcher.join()
    return peak


def draw(result: dict[str, Any]) -> Path:
    """Draw both precisions of every loss beside its naive formula, memory in the names, to docs/img (or $OUT)."""
    groups: dict[str, dict[str, float]] = {}
    memory = {(row["loss"], row["way"]): row["beyond_gradients_mib"] for row in result["table"]}
    for row in result["table"]:
        if row["way"] != "naive":
            ours, naive = memory[row["loss"], "bfloat16"], memory[row["loss"], "naive"]
            name = f"{NAMES[row['loss']]}\n{ours:.0f} MiB instead of {naive:.0f}"
            groups.setdefault(name, {})[f"{row['way']} products"] = row["ratio"]
    machine, size = result["machine"], result["setting"]
    folder = Path(os.environ["OUT"]) if os.environ.get("OUT") else Path(__file__).parents[1] / "docs/img"
    title = f"Loss and gradients, {size['batch']} queries × {size['labels']:,} labels × {size['dimension']}"
    note = f"memory: beyond inputs and gradients; {machine['processor']}, {machine['threads']} threads"
    return ratio_bars(folder / "losses.png", title, groups, "the published formula in torch, float32", note)


def main() -> None:
    """Measure, print a table, write JSON and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--labels", type=int, default=131_072)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--positives", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--draw", action="store_true", help="draw the last run again")
    given = parser.parse_args()
    if given.draw:
        folder = os.environ.get("OUT") or Path(__file__).parent / "results"
        print(draw(json.loads((Path(folder) / "losses.json").read_text(encoding="utf-8"))))
        return
    del given.draw
    torch.manual_seed(0)
    queries = normalize(torch.randn(given.batch, given.dimension)).requires_grad_()
    labels = normalize(torch.randn(given.labels, given.dimension)).requires_grad_()
    random = np.random.default_rng(0)
    rows = [random.choice(given.labels, given.positives, replace=False).tolist() for _ in range(given.batch)]
    positives = Positives.from_rows(rows, given.labels)
    mask = torch.from_numpy(positives.matrix().toarray() > 0)
    gradients = (queries.numel() + labels.numel()) * 4 / 2**20
    table = []
    for name, formula in NAIVE.items():
        ways: dict[str, Callable[[], Tensor]] = {"naive": lambda f=formula: f(queries, labels, mask)}  # type: ignore[misc]
        for products in ("bfloat16", "float32"):
            loss = LOSSES.build(name, {"temperature": T, "products": products})
            ways[products] = lambda made=loss: made(queries, labels, positives)  # type: ignore[misc]
        times: dict[str, list[float]] = {way: [] for way in ways}
        memory = {}

        def step(forward: Callable[[], Tensor]) -> None:
            queries.grad = labels.grad = None
            forward().backward()  # type: ignore[no-untyped-call]

        for way, forward in ways.items():
            step(forward)
            queries.grad = labels.grad = None
            memory[way] = peak_mib(lambda run=forward: step(run)) - gradients  # type: ignore[misc]
        for _ in range(given.repeats):  # alternating, so that a busy machine slows all alike
            for way, forward in ways.items():
                start = time.perf_counter()
                step(forward)
                times[way].append(time.perf_counter() - start)
        median = {way: statistics.median(found) for way, found in times.items()}
        for way in ways:
            ratio = median["naive"] / median[way]
            table.append(
                {"loss": name, "way": way, "ratio": ratio, "ms": 1000 * median[way], "beyond_gradients_mib": memory[way]}
            )
            print(f"{ratio:6.2f}x  {name:18} {way:9} {1000 * median[way]:8.0f} ms  {memory[way]:7.0f} MiB", flush=True)
    result = {"machine": describe(), "setting": vars(given), "table": table}
    print(write_result("losses", result))
    print(draw(result))


if __name__ == "__main__":
    main()
