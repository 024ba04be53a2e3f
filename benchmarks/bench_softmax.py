"""Softmax over rows against its peers, in the cache and far beyond it: both three-pass kernels, torch, scipy, plain numpy.

python benchmarks/bench_softmax.py [--quick] [--repeats 9] [--shapes 64x8192 1x67108864]
python benchmarks/bench_softmax.py --draw    # docs/img/softmax.png from the JSON of the last run

A result of its own has to be faulted in page by page; the kernels are also timed into a result that is given. The floor is
what two passes must move: one read and one copy of the scores, at the bandwidth that torch's read and copy reach here.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import scipy.special
import torch
from machine import describe, write_result
from plots import ratio_bars
from torch import Tensor

from dexml.kernels import numba_softmax
from dexml.kernels.numba_cpu import NumbaKernels
from dexml.kernels.threads import ONE_AT_A_TIME

SHAPES = ("1x1024", "4x8192", "64x8192", "16x131072", "8x1048576", "64x1048576", "1x67108864")
QUICK = ("64x8192", "16x131072", "4x1048576", "1x4194304")
TWO, STORED, RECOMPUTED = "two passes", "three passes, stored", "three passes, recomputed"
KERNELS = {TWO: numba_softmax.TWO, STORED: numba_softmax.THREE, RECOMPUTED: numba_softmax.RECOMPUTED}
PATIENCE = 5  # tries of a timing that other processes disturb
SETTLE = 0.02  # seconds before a timing
SHORTEST = 2e-3  # seconds that a timing takes at least, by repeating the call


def numpy_softmax(scores: np.ndarray) -> np.ndarray:
    """Return the textbook's three lines."""
    powers: np.ndarray = np.exp(scores - scores.max(1, keepdims=True))
    powers /= powers.sum(1, keepdims=True)
    return powers


def ways_of(scores: Tensor, out: Tensor) -> dict[str, Callable[[], Any]]:
    """Return what is timed: into `out`, then with a result of its own, then the floor's two parts."""
    kernels, threads, given = NumbaKernels(), torch.get_num_threads(), scores.numpy()

    def kernel(number: int | None) -> Callable[[], None]:
        def run() -> None:
            with ONE_AT_A_TIME:
                numba.set_num_threads(threads)
                numba_softmax.compute(scores, out, 1.0, threads, number)

        return run

    whole = scores.view(torch.int32)
    return {
        **{name: kernel(number) for name, number in KERNELS.items()},
        "picked": kernel(None),
        "torch, out=": lambda: torch.softmax(scores, 1, out=out),
        "dexml": lambda: kernels.softmax(scores),
        "torch": lambda: torch.softmax(scores, 1),
        "scipy": lambda: scipy.special.softmax(given, axis=1),
        "numpy": lambda: numpy_softmax(given),
        "read": lambda: whole.max(),
        "copy": lambda: out.copy_(scores),
    }


def timed(call: Callable[[], Any], number: int) -> tuple[float, bool]:
    """Return the seconds of a call and whether it was let run: one that lost its core to another process is tried again.

    After PATIENCE tries the last one counts, and is counted. The memory's bandwidth may still be shared. Torch and numba
    have threads of their own, which spin on for milliseconds after a call: those of the way before are let fall asleep.
    """
    for _ in range(PATIENCE):
        time.sleep(SETTLE)
        call()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        start = time.perf_counter()
        for _ in range(number):
            call()
        seconds = (time.perf_counter() - start) / number
        if resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == before:
            return seconds, True
    return seconds, False


def check(ways: dict[str, Callable[[], Any]], scores: Tensor, out: Tensor) -> float:
    """Return the largest relative error of any kernel's first million probabilities of the first row."""
    exact = torch.softmax(scores[0].double(), 0)[: 1 << 20]
    worst = 0.0
    for name in KERNELS:
        out.fill_(torch.nan)
        ways[name]()
        worst = max(worst, float(((out[0, : 1 << 20].double() - exact) / exact).abs().max()))
    assert worst <= 2e-6, f"a relative error of {worst:.1e}"
    return worst


def measure(scores: Tensor, repeats: int) -> dict[str, Any]:
    """Return the times of every way for one matrix of scores, called in turn, and the ratios between them."""
    out = torch.zeros_like(scores)
    ways = ways_of(scores, out)
    error = check(ways, scores, out)
    numbers = {}
    for name, call in ways.items():
        call()
        start = time.perf_counter()
        call()
        numbers[name] = max(1, int(SHORTEST / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in ways}
    disturbed = dict.fromkeys(ways, 0)
    for _ in range(repeats):  # alternating, so that a busy machine slows all alike
        for name, call in ways.items():
            seconds, alone = timed(call, numbers[name])
            times[name].append(seconds)
            disturbed[name] += not alone
    median = {name: statistics.median(found) for name, found in times.items()}
    three = min((STORED, RECOMPUTED), key=lambda name: median[name])
    floor = median["read"] + median["copy"]
    table = []
    for name, seconds in median.items():
        peer = "torch" if name in ("dexml", "torch", "scipy", "numpy") else "torch, out="
        table.append(
            {
                "way": name,
                "over_torch": median[peer] / seconds,
                "of_floor": floor / seconds,
                "ms": 1000 * seconds,
                "best_ms": 1000 * min(times[name]),
                "disturbed": disturbed[name],
            }
        )
    return {
        "rows": scores.shape[0],
        "width": scores.shape[1],
        "two_over_better_three": median[three] / median[TWO],
        "better_three": three,
        "picked_over_torch": median["torch, out="] / median["picked"],
        "dexml_over_torch": median["torch"] / median["dexml"],
        "floor_ms": 1000 * floor,
        "worst_relative_error": error,
        "table": table,
    }


def draw(result: dict[str, Any]) -> Path:
    """Draw the kernels and torch into a given result, and the whole call against torch's, to docs/img (or $OUT)."""
    groups = {}
    for shape in result["shapes"]:
        ratio = {row["way"]: row["over_torch"] for row in shape["table"]}
        kib = shape["rows"] * shape["width"] // 256
        name = f"{shape['rows']:,} × {shape['width']:,}\n{f'{kib} KiB' if kib < 1024 else f'{kib >> 10} MiB'}"
        three = {"three passes (the better kernel)": ratio[shape["better_three"]]}
        groups[name] = {TWO: ratio[TWO], **three, "whole call, its result allocated": ratio["dexml"]}
    machine = result["machine"]
    folder = Path(os.environ["OUT"]) if os.environ.get("OUT") else Path(__file__).parents[1] / "docs/img"
    note = f"{machine['processor']}, {machine['threads']} threads, torch {machine['versions']['torch']}"
    return ratio_bars(folder / "softmax.png", "Softmax on a CPU, float32", groups, "torch.softmax", note)


def main() -> None:
    """Measure, print ratios, write JSON and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="ROWSxWIDTH")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a few seconds, nothing written")
    parser.add_argument("--draw", action="store_true", help="draw the last run again")
    given = parser.parse_args()
    if given.draw:
        folder = os.environ.get("OUT") or Path(__file__).parent / "results"
        print(draw(json.loads((Path(folder) / "softmax.json").read_text(encoding="utf-8"))))
        return
    shapes = []
    for name in QUICK if given.quick else given.shapes:
        rows, width = map(int, name.split("x"))
        scores = 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
        found = measure(scores, 3 if given.quick else given.repeats)
        shapes.append(found)
        print(f"{rows:,} x {width:,}: two passes {found['two_over_better_three']:.2f}x the better three-pass kernel,", end=" ")
        print(f"dexml {found['dexml_over_torch']:.2f}x torch; floor {found['floor_ms']:.3f} ms")
        for row in found["table"]:
            print(f"{row['over_torch']:7.2f}x torch {100 * row['of_floor']:4.0f}% of the floor  {row['way']:25}", end=" ")
            print(f"{row['ms']:10.3f} ms  (best {row['best_ms']:.3f}; {row['disturbed']} disturbed)", flush=True)
    if given.quick:
        return
    setting = {
        "crossover": numba_softmax.crossover(),
        "streaming": numba_softmax.streaming(),
        "repeats": given.repeats,
    }
    result = {"machine": describe(), "setting": setting, "shapes": shapes}
    print(write_result("softmax", result))
    print(draw(result))


if __name__ == "__main__":
    main()
