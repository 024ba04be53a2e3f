"""Crossovers: measured once, kept, read back, and never a reason to fail."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dexml.kernels import calibration
from dexml.kernels.calibration import Crossovers, fastest


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A user's cache folder without a file, and nothing remembered from before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for function in (calibration.crossovers, calibration.known):
        function.cache_clear()
    yield tmp_path
    for function in (calibration.crossovers, calibration.known):
        function.cache_clear()


def test_the_fastest_setting_wins():
    def run(size: int) -> int:
        return sum(range(size))

    assert fastest([300_000, 10, 200_000], run) == 10


def test_a_measurement_is_kept_and_read_back(empty_cache, monkeypatch):
    made = []

    def trials() -> Crossovers:
        made.append(Crossovers(block=512, copy_from=8192))
        return made[-1]

    monkeypatch.setattr("dexml.kernels.trials.trials", trials)
    assert calibration.known() == Crossovers()
    first = calibration.crossovers()
    calibration.crossovers.cache_clear()  # as another process would find it
    assert first == calibration.crossovers() == calibration.known() == made[0]
    assert len(made) == 1
    assert [file.name for file in calibration.path().parent.glob("*.json")] == [calibration.path().name]


@pytest.mark.parametrize("text", ["", "{", '{"block": "many"}', '{"blocks": 256}'])
def test_a_file_that_cannot_be_read_is_measured_anew(empty_cache, monkeypatch, text):
    monkeypatch.setattr("dexml.kernels.trials.trials", lambda: Crossovers(block=128))
    calibration.path().parent.mkdir(parents=True)
    calibration.path().write_text(text, encoding="utf-8")
    assert calibration.crossovers() == Crossovers(block=128)
    assert json.loads(calibration.path().read_text(encoding="utf-8"))["block"] == 128


def test_a_cache_folder_that_cannot_be_written_is_no_reason_to_fail(empty_cache, monkeypatch, caplog):
    (empty_cache / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty_cache / "file"))
    assert calibration.crossovers() == Crossovers()
    assert "built-in" in caplog.text


def test_info_measures_this_machine_and_prints_it(tmp_path):
    """The real measurement in a process of its own: seconds, and more where numba has nothing compiled yet."""
    command = [sys.executable, "-m", "dexml", "info", "--kernels"]
    done = subprocess.run(
        command, env={"XDG_CACHE_HOME": str(tmp_path), "PATH": ""}, capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout)
    assert said["backends"]["reference"]["cpu"] == "ready"
    found = Crossovers.model_validate(said["crossovers"])
    assert found.rows_up_to in (1, 4)
    assert (
        Crossovers.model_validate_json((tmp_path / "dexml" / "kernels" / said["kept_in"].rsplit("/", 1)[1]).read_text())
        == found
    )


def test_info_says_what_it_needs():
    for arguments in ([], ["--measure"], ["bundle", "--kernels"]):
        done = subprocess.run([sys.executable, "-m", "dexml", "info", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "Error" in done.stderr
