"""`make gpu` without a GPU: sections keep what they measured when their time is over, and targets get their verdicts."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch  # noqa: F401  (imported by the benchmark too, and not on its clock here)

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RATES = {"bfloat16_tflops": 700.0, "bandwidth_gbs": 4000.0}
DECOUPLED = {"what": "3000 × 1305265 × 768", "backend": "triton", "ms": 40.0, "forward_ms": 20.0}


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    monkeypatch.setattr(gpu.faulthandler, "dump_traceback_later", lambda *_, **__: None)
    return gpu


def row(what: str, **more) -> dict:
    return {"what": what, "ms": 1.0, "ratio": 2.0, **more}


def test_a_section_keeps_its_rows_when_its_time_is_over_or_it_fails(gpu, monkeypatch, capsys):
    import gpu_report

    def scans(rates):
        assert rates == RATES
        yield row("1 × 10, none", batch=1, share_of_bandwidth=0.75)
        yield row("256 × 10, none", batch=256, share_of_bandwidth=0.1)
        while True:  # a kernel that takes for ever, to Python
            try:
                time.sleep(0.01)
            except Exception:  # nor does a careless handler stop the clock
                continue

    def losses():
        yield row("softmax")
        raise RuntimeError("out of memory")

    timings = ModuleType("gpu_timings")
    timings.rates = lambda: iter([RATES])
    timings.decoupled_target = lambda rates: iter([DECOUPLED | {"share_of_rate": 0.55, "beyond_gib": 12.5}])
    timings.scans, timings.losses = scans, losses
    timings.rescore = lambda: iter([row("rescore")])
    timings.softmax = lambda rates: iter([row("softmax", note="80%")])
    monkeypatch.setitem(sys.modules, "gpu_timings", timings)
    monkeypatch.setattr(gpu, "BUDGETS", dict.fromkeys(gpu.BUDGETS, 0.2))
    result, written = {"machine": {"gpu": "H200"}, "checks": [{"passed": True}], "cut": {}}, []
    clock = gpu.Clock(limited=True)
    gpu.time_everything(result, clock, lambda: written.append(json.dumps(result)))
    assert clock.now() < 10 and len(written) == 6
    assert [len(result[name]) for name in gpu.BUDGETS if name != "checks"] == [1, 1, 2, 1, 1, 1]
    assert set(result["cut"]) == {"scan", "losses"} and "out of memory" in result["cut"]["losses"]

    result["seconds"] = clock.now()
    result["targets"] = gpu_report.targets(result)
    gpu_report.report(result)
    verdicts = {target["what"]: target["passed"] for target in result["targets"]}
    assert list(verdicts.values()) == [True, True, False, True, True], verdicts
    printed = capsys.readouterr().out
    assert "75% of the bandwidth" in printed and "FAIL" in printed and "CUT    scan" in printed


def test_what_was_not_measured_has_not_passed(gpu):
    import gpu_report

    nothing = {"checks": [{"passed": True}], "cut": {"checks": "over"}, "seconds": 481.0}
    assert [target["passed"] for target in gpu_report.targets(nothing)] == [None, None, None, None, False]


def test_all_sections_together_end_before_the_watchdog_and_that_before_eight_minutes(gpu):
    assert sum(gpu.BUDGETS.values()) < gpu.LAST_S < 480
