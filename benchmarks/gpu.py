"""On a machine with an NVIDIA GPU: every kernel against the reference in float64, then timings against torch. `make gpu`.

usage: python3 benchmarks/gpu.py [--interpret]
--interpret runs the correctness half alone, in Triton's interpreter on a CPU. Needs torch, triton and dexml's own few imports,
from a bare checkout; prints what is missing. Writes gpu.json under benchmarks/results, or under $OUT; exits with 1 when a
kernel is wrong. Takes under 8 minutes: sections that would begin after that are skipped, and said to be.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "triton", "numpy", "scipy", "numba")
NAMED = ("pydantic", "annotated_types")  # imported by dexml for options, which nothing here reads
LIMIT_S = 400.0  # after which no further section begins


class Names(ModuleType):
    """A module that has every name asked for, each an empty class: enough to be imported, not to be used."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def main() -> int:
    """Check, time, write and print; return 1 when a kernel is wrong or cannot run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interpret", action="store_true", help="the correctness half, in Triton's interpreter")
    chosen = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"make gpu needs {', '.join(missing)}, not installed for {sys.executable}")
        return 1
    absent = [name for name in NAMED if importlib.util.find_spec(name) is None]
    for name in absent:
        sys.modules[name] = Names(name)
        print(f"{name} is not installed; nothing here reads options, so empty names stand in for it")
    if chosen.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: kernels look when they are defined
    elif os.environ.get("TRITON_INTERPRET") == "1":
        print("TRITON_INTERPRET=1 is set: use --interpret, or unset it")
        return 1
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    import torch

    if not chosen.interpret and not torch.cuda.is_available():
        print("torch sees no NVIDIA GPU; --interpret runs the correctness half without one")
        return 1
    from gpu_checks import run_checks
    from machine import describe, write_result

    start = time.perf_counter()
    result: dict[str, Any] = {"machine": describe(), "interpreted": chosen.interpret, "absent": absent}
    result["checks"] = run_checks("cpu" if chosen.interpret else "cuda")
    print(f"checked in {time.perf_counter() - start:.0f} s", flush=True)
    if not chosen.interpret:
        write_result("gpu", result)  # what is known so far, should a later section take the machine down
        time_everything(result, start)
    path = write_result("gpu_interpreted" if chosen.interpret else "gpu", result)
    report(result)
    print(f"{time.perf_counter() - start:.0f} s in all; {path}")
    return int(not all(check["passed"] for check in result["checks"]))


def time_everything(result: dict[str, Any], start: float) -> None:
    """Add every section's figures to `result`, or why it has none."""
    import gpu_timings as timings
    import torch

    rates = result["rates"] = timings.rates()
    print(f"measured: {rates['bfloat16_tflops']:.0f} TFLOP/s bfloat16, {rates['bandwidth_gbs']:.0f} GB/s", flush=True)
    sections: dict[str, Callable[[], Any]] = {
        "decoupled_softmax_target": lambda: timings.decoupled_target(rates),
        "scan": lambda: timings.scans(rates),
        "losses": timings.losses,
        "rescore": timings.rescore,
        "softmax": lambda: timings.softmax(rates),
    }
    for name, section in sections.items():
        began = time.perf_counter()
        if began - start > LIMIT_S:
            result[name] = {"skipped": f"{LIMIT_S:.0f} s were over"}
            continue
        try:
            result[name] = section()
        except Exception as problem:  # one section that fails must not cost the others their figures
            result[name] = {"failed": f"{type(problem).__name__}: {problem}"[:1000]}
        torch.cuda.empty_cache()
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


def report(result: dict[str, Any]) -> None:
    """Print a short table: failures first, then ratios, then the two targets of issue 3."""
    passed = sum(check["passed"] for check in result["checks"])
    print(f"\n{passed} of {len(result['checks'])} checks passed on {result['machine']['gpu'] or 'the interpreter'}")
    for check in result["checks"]:
        if not check["passed"]:
            print(f"  WRONG  {check['check']}: {check['error']} (allowed {check['tolerance']})")
    for name in ("scan", "losses", "rescore", "softmax"):
        section = result.get(name)
        if isinstance(section, dict):
            print(f"{name}: {section}")
        for row in section if isinstance(section, list) else []:
            print(f"{name:8} {row['what']:44} {row['ms']:9.3f} ms  {row['ratio']:6.2f}× torch  {row.get('note', '')}")
    target = result.get("decoupled_softmax_target")
    if target is None:
        return
    if "ms" not in target:
        print(f"decoupled softmax target: {target}")
        return
    print(
        f"decoupled softmax, {target['what']}: {target['ms']:.1f} ms (forward {target['forward_ms']:.1f}), "
        f"{100 * target['share_of_rate']:.0f}% of the measured bfloat16 rate (wanted 50%), "
        f"{target['beyond_gib']:.2f} GiB beyond embeddings and gradients (allowed 12)"
    )
    shares = [row for row in result["scan"] if row["batch"] <= 32] if isinstance(result["scan"], list) else []
    for row in shares:
        print(f"scan {row['what']}: {100 * row['share_of_bandwidth']:.0f}% of the measured bandwidth (wanted 70%)")


if __name__ == "__main__":
    sys.exit(main())
