"""A history has every step, survives a torn line, and goes on from a checkpoint as if nothing had come after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dexml.errors import InputError
from training.history import FILE, History, read
from training.run import Progress

Make = Callable[..., Progress]


def places(out: Path) -> list[tuple[str, int, int]]:
    return [(line["kind"], line["phase"], line["step"]) for line in read(out)]


def test_every_step_and_validation_is_there_as_soon_as_it_is_written(tmp_path: Path, progress: Make):
    history = History(tmp_path)
    history.write(progress(1))
    history.write(progress(2, validated=0.125))
    first, second, third = read(tmp_path)
    assert first == {
        "kind": "step",
        "phase": 1,
        "step": 1,
        "epoch": 1,
        "loss": 1.0,
        "rate": 1e-3,
        "gradient_norm": 0.5,
        "queries": 16,
        "scores": 160,
        "seconds": 0.25,
    }
    assert second["loss"] == 0.5
    assert third == {
        "kind": "validation", "phase": 1, "step": 2, "epoch": 1, "P@1": 50.0, "P@3": 40.0, "P@5": 30.0, "seconds": 0.125
    }  # fmt: skip
    history.close()


def test_going_on_cuts_what_came_after_the_checkpoint_and_a_torn_line(tmp_path: Path, progress: Make):
    assert read(tmp_path) == []
    history = History(tmp_path)
    for phase in (1, 2):
        for step in (1, 2, 3):
            history.write(progress(step, phase=phase, validated=0.1 if step == 2 else None))
    history.close()
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"kind": "step", "phase": 2, "st')
    assert places(tmp_path)[-1] == ("step", 2, 3), "a torn line is no line"

    history = History(tmp_path, after=(2, 2))
    history.write(progress(3, phase=2))
    history.close()
    assert places(tmp_path)[-3:] == [("step", 2, 2), ("validation", 2, 2), ("step", 2, 3)]
    assert len(places(tmp_path)) == 8
    for line in (tmp_path / FILE).read_text().splitlines():
        json.loads(line)
    History(tmp_path, after=(1, 1)).close()
    assert places(tmp_path) == [("step", 1, 1)]
    History(tmp_path, after=(1, 0)).close()
    assert places(tmp_path) == []
    History(tmp_path, after=(3, 4)).close()


def test_a_new_run_starts_anew(tmp_path: Path, progress: Make):
    for _ in range(2):
        history = History(tmp_path)
        history.write(progress(1))
        history.close()
    assert places(tmp_path) == [("step", 1, 1)]


def test_a_folder_that_is_none_is_told(tmp_path: Path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(InputError, match=r"history\.jsonl cannot be written"):
        History(tmp_path)
