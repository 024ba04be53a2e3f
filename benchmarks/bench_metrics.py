"""All metrics of a full-size sparse file, beside pyxclib's own where it can be imported (`xclib`; it is in no registry).

python benchmarks/bench_metrics.py [--rows 134835] [--labels 131073] [--predictions 100] [--repeats 3]

Each way runs in a process of its own, which reads the files, warms up on a few rows (numba compiles), and then takes the best
of some repeats. P, R, nDCG, hits, PSP, PSnDCG, PSR: pyxclib's functions give every k up to 5, or up to 100; dexml gives its
usual cutoffs up to there, and MRR, MAP, coverage, macro-averages and counts by label in the same pass. The peak is that of
the process, files and imports included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

DEPTHS = (5, 100)
WAYS = ("dexml", "dexml, one thread", "pyxclib")
PROPENSITY = (0.6, 2.6)


def made(folder: Path, rows: int, labels: int, predictions: int) -> None:
    """Write scores.npz and truth.npz: five true labels a row on average, two of them among the predictions."""
    random = np.random.default_rng(0)
    said = np.sort(random.integers(0, labels - predictions, (rows, predictions), dtype=np.int32), axis=1)
    said += np.arange(predictions, dtype=np.int32)
    ends = np.arange(0, rows * predictions + 1, predictions, dtype=np.int32)
    scores = random.random(rows * predictions, dtype=np.float32)
    sp.save_npz(folder / "scores.npz", sp.csr_matrix((scores, said.ravel(), ends), shape=(rows, labels)), compressed=False)
    found = said[np.arange(rows)[:, None], random.integers(0, predictions, (rows, 2))]
    true = np.concatenate([found, random.integers(0, labels, (rows, 3), dtype=np.int32)], axis=1)
    pairs = np.repeat(np.arange(rows), 5)
    truth = sp.csr_matrix((np.ones(5 * rows, dtype=np.float32), (pairs, true.ravel())), shape=(rows, labels))
    truth.data[:] = 1
    sp.save_npz(folder / "truth.npz", truth, compressed=False)


def by_dexml(scores: Any, truth: Any, k: int, threads: int | None) -> dict[str, float]:
    """Return every figure at k."""
    from dexml.metrics import CUTOFFS, measure, propensity_weights
    from dexml.positives import Positives

    positives = Positives.from_matrix(truth)
    weights = propensity_weights(positives.counts(), len(positives), *PROPENSITY)
    cutoffs = [some for some in CUTOFFS if some <= k]
    figures = measure(scores, positives, weights, cutoffs, threads=threads).figures()
    return {name.split("@")[0]: value / 100 for name, value in figures.items() if name.endswith(f"@{k}")}


def by_pyxclib(scores: Any, truth: Any, k: int) -> dict[str, float]:
    """Return pyxclib's figures at k, in float64."""
    from xclib.evaluation import xc_metrics

    true = truth.astype(np.float64)
    weights = xc_metrics.compute_inv_propesity(true, *PROPENSITY)
    plain = {"P": "precision", "R": "recall", "nDCG": "ndcg", "hits": "hits"}
    weighted = {"PSP": "psprecision", "PSR": "psrecall", "PSnDCG": "psndcg"}
    found = {name: getattr(xc_metrics, function)(scores, true, k=k)[-1] for name, function in plain.items()}
    found |= {name: getattr(xc_metrics, function)(scores, true, weights, k=k)[-1] for name, function in weighted.items()}
    return {name: float(value) for name, value in found.items()}


def one_way(way: str, folder: Path, k: int, repeats: int) -> dict[str, Any]:
    """Measure one way in this process."""
    start = time.perf_counter()
    scores: Any = sp.load_npz(folder / "scores.npz")
    truth: Any = sp.load_npz(folder / "truth.npz")
    read_in = time.perf_counter() - start

    def call(few: slice) -> dict[str, float]:
        parts = (scores, truth) if few == slice(None) else (scores[few], truth[few])
        if way == "pyxclib":
            return by_pyxclib(*parts, k)
        return by_dexml(*parts, k, 1 if "one" in way else None)

    try:
        call(slice(0, 2000))
    except ImportError as error:
        return {"missing": str(error)}
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        figures = call(slice(None))
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": min(seconds), "read_seconds": read_in, "peak_mib": peak, "figures": figures}


def main() -> None:
    """Measure, print ratios and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=134_835)
    parser.add_argument("--labels", type=int, default=131_073)
    parser.add_argument("--predictions", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", nargs=3, metavar=("WAY", "FOLDER", "K"), help="what a process of its own is told")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(one_way(given.way[0], Path(given.way[1]), int(given.way[2]), given.repeats)))
        return
    lines = []
    with tempfile.TemporaryDirectory() as name:
        made(Path(name), given.rows, given.labels, given.predictions)
        for k in DEPTHS:
            found: dict[str, dict[str, Any]] = {}
            for way in WAYS:
                command = [sys.executable, __file__, "--repeats", str(given.repeats), "--way", way, name, str(k)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[way] = json.loads(done.stdout.splitlines()[-1])
            lines += _compared(found, k)
    from machine import describe, write_result  # imports torch, which the processes go without

    setting = {name: value for name, value in vars(given).items() if name != "way"}
    print(write_result("metrics", {"machine": describe(), "setting": setting, "table": lines}))


def _compared(found: dict[str, dict[str, Any]], k: int) -> list[dict[str, Any]]:
    """Print and return a line a way; figures that pyxclib has as well must be its own."""
    theirs = found["pyxclib"]
    lines = []
    for way, measured in found.items():
        if "missing" in measured:
            print(f"k = {k:3}  {way:18} {measured['missing']}")
            continue
        ratio = theirs["seconds"] / measured["seconds"] if "seconds" in theirs else None
        for name, value in theirs.get("figures", {}).items():
            assert abs(measured["figures"][name] - value) <= 1e-6, (way, name, measured["figures"][name], value)
        said = f"{ratio:6.2f}x" if ratio else "      –"
        print(f"k = {k:3}  {said}  {way:18} {measured['seconds']:7.2f} s  peak {measured['peak_mib']:6.0f} MiB")
        lines.append(
            {"way": way, "k": k, "ratio": ratio, **{key: measured[key] for key in ("seconds", "read_seconds", "peak_mib")}}
        )
    return lines


if __name__ == "__main__":
    main()
