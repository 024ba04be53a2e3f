"""The systemd unit: what systemd itself says of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve.settings import Settings

UNIT = Path(__file__).parents[2] / "deploy" / "dexml.service"


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


def test_systemd_reads_every_line_of_it(tmp_path: Path):
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/dexml/bin/dexml", sys.executable), encoding="utf-8")
    done = analyze("verify", "--man=no", copy)
    assert UNIT.name not in done.stderr and done.returncode == 0, done.stderr  # other units of this machine may have faults


def test_its_exposure_is_low():
    done = analyze("security", "--offline=true", "--threshold=15", UNIT)  # tenths
    assert done.returncode == 0, done.stdout


def test_it_waits_for_the_drain_and_lets_numba_compile():
    unit = UNIT.read_text(encoding="utf-8")
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(seconds) > Settings().drain_s + 5 and "\nMemoryDenyWriteExecute=no\n" in unit and "\nWatchdogSec" not in unit
