"""On a machine with an NVIDIA GPU: every kernel against the reference in float64, then timings against torch. `make gpu`.

usage: python3 benchmarks/gpu.py [--interpret]
--interpret runs the correctness half alone, in Triton's interpreter on a CPU. Needs torch, triton and dexml's own few imports,
from a bare checkout; prints what is missing. Prints each figure as it comes, and at the end whether the targets of issue 3 are
met; writes gpu.json under benchmarks/results, or under $OUT, after every section. Exits with 1 when a kernel is wrong or was
not checked. Takes under 8 minutes: each section has its share of them, and loses its last rows when that is over.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "triton", "numpy", "scipy", "numba")
NAMED = ("pydantic", "annotated_types")  # imported by dexml for options, which nothing here reads
# Seconds of each section; what one leaves over, the next ones may use. Most of each is compiling and tuning.
BUDGETS = {"checks": 100, "rates": 15, "decoupled_softmax_target": 90, "scan": 100, "losses": 115, "rescore": 15, "softmax": 20}
LAST_S = 475  # when the process ends whatever it is doing: a kernel that hangs must not hold the machine


class OutOfTimeError(BaseException):
    """A section's time is over. No `except Exception` stops it."""


class Anything:
    """A class that can be made, called, subclassed and used as a decorator with whatever arguments: enough to be imported."""

    def __init__(self, *_given: object, **_named: object) -> None:
        pass

    def __init_subclass__(cls, **_named: object) -> None:
        pass

    def __call__(self, function: object) -> object:
        """Return what is decorated."""
        return function


class Names(ModuleType):
    """A module that has every name asked for, each an empty class: not to be used."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Anything,), {})


class Clock:
    """The time of the whole run, and the end of each section in it."""

    def __init__(self, limited: bool) -> None:
        self.start, self.limited = time.perf_counter(), limited
        ends = [sum(list(BUDGETS.values())[: n + 1]) for n in range(len(BUDGETS))]
        self.ends = dict(zip(BUDGETS, ends, strict=True))
        if limited:
            faulthandler.dump_traceback_later(LAST_S, exit=True)

    def now(self) -> float:
        """Return the seconds since the beginning."""
        return time.perf_counter() - self.start

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Raise OutOfTimeError in a `with` block at the end of a section's time."""
        if not self.limited:
            yield
            return

        def over(_signal: int, _frame: object) -> None:
            raise OutOfTimeError(f"{self.ends[name]} s of the run were over")

        signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, self.ends[name] - self.now()))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> int:
    """Check, time, write and print; return 1 when a kernel is wrong, was not checked or cannot run."""
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
    clock = Clock(limited=not chosen.interpret)
    import torch

    if not chosen.interpret and not torch.cuda.is_available():
        print("torch sees no NVIDIA GPU; --interpret runs the correctness half without one")
        return 1
    from gpu_checks import run_checks
    from gpu_report import report, targets
    from machine import describe, write_result

    name = "gpu_interpreted" if chosen.interpret else "gpu"
    result: dict[str, Any] = {"machine": describe(), "interpreted": chosen.interpret, "absent": absent, "checks": [], "cut": {}}
    print(f"on {result['machine']['gpu'] or 'the interpreter'}", flush=True)
    device = "cpu" if chosen.interpret else "cuda"
    run_section("checks", clock, result, lambda: run_checks(device, result["checks"]))
    if not chosen.interpret:
        write_result(name, result)  # what is known so far, should a later section take the machine down
        time_everything(result, clock, lambda: write_result(name, result))
    result["seconds"] = clock.now()
    result["targets"] = [] if chosen.interpret else targets(result)
    path = write_result(name, result)
    report(result)
    print(f"{result['seconds']:.0f} s in all; {path}")
    return int("checks" in result["cut"] or not all(check["passed"] for check in result["checks"]))


def run_section(name: str, clock: Clock, result: dict[str, Any], section: Callable[[], object]) -> None:
    """Run a section in its time; note in `result["cut"]` why it did not get to its end."""
    began = clock.now()
    try:
        with clock.section(name):
            section()
    except OutOfTimeError as over:
        result["cut"][name] = str(over)
    except Exception as problem:  # one section that fails must not cost the others their figures
        result["cut"][name] = f"{type(problem).__name__}: {problem}"[:1000]
    print(f"[{clock.now():3.0f} s] {name}: {clock.now() - began:.0f} s  {result['cut'].get(name, '')}", flush=True)


def time_everything(result: dict[str, Any], clock: Clock, write: Callable[[], object]) -> None:
    """Add the rows of every section to `result`, which `write` writes after each."""
    import gpu_timings as timings
    import torch
    from gpu_report import line

    sections: dict[str, Callable[[], Iterable[Any]]] = {
        "rates": timings.rates,
        "decoupled_softmax_target": lambda: timings.decoupled_target(result["rates"][0]),
        "scan": lambda: timings.scans(result["rates"][0]),
        "losses": timings.losses,
        "rescore": timings.rescore,
        "softmax": lambda: timings.softmax(result["rates"][0]),
    }

    def collect(name: str) -> None:
        for row in sections[name]():
            result[name].append(row)
            print(f"[{clock.now():3.0f} s] {line(name, row)}", flush=True)

    for name in sections:
        result[name] = []
        run_section(name, clock, result, lambda name=name: collect(name))  # type: ignore[misc]
        torch.cuda.empty_cache()
        write()


if __name__ == "__main__":
    sys.exit(main())
