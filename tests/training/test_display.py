"""What a person reads while a run trains: speed, time to go, one line per epoch."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from training.display import Speed, clock, line, rounded, shown
from training.run import Progress

STEP = Progress(
    phase=1,
    step=4,
    steps=12,
    epoch=1,
    epochs=3,
    loss=2.5,
    rate=3e-3,
    gradient_norm=0.75,
    queries=100,
    scores=100_000,
    step_seconds=0.5,
    validation_seconds=2.0,
    precision_1=80.0,
    precision_3=70.0,
    precision_5=60.0,
    seconds=4.0,
)


def test_speed_is_of_the_last_seconds_and_the_time_to_go_counts_validations():
    speed = Speed()
    speed.add(replace(STEP, step=1, step_seconds=30.0, validation_seconds=None))  # compiling
    assert speed.queries() == pytest.approx(100 / 30)
    for step in range(2, 30):
        speed.add(replace(STEP, step=min(step, 4)))
    assert speed.queries() == pytest.approx(200) and speed.scores() == pytest.approx(200_000)
    assert speed.to_go() == pytest.approx(8 * 0.5 + 2 * 2.0)
    speed.add(replace(STEP, step=12, epoch=3))
    assert speed.to_go() == 0


def test_the_line_of_an_epoch_says_it_all():
    speed = Speed()
    speed.add(STEP)
    assert line(STEP, speed, ends=True) == (
        "epoch 1/3 · loss 2.5000 · rate 0.003 · gradient 0.75 · validation P@1 80.0 P@3 70.0 P@5 60.0 · "
        "200 queries/s · 200 k label scores/s · 4.0 s · 8.0 s left"
    )
    last = replace(STEP, step=12, epoch=3, precision_1=None, seconds=63.2)
    assert line(last, speed, ends=False).startswith("step 12/12 · loss") and line(last, speed, ends=True).endswith("1:03")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1:00"), (3599, "59:59"), (7325.4, "2:02:05")]
)
def test_durations(seconds: float, said: str):
    assert clock(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0.5, "0.5"), (950.0, "950"), (1234.0, "1.23 k"), (17e6, "17 M"), (2.1e9, "2.1 G")]
)
def test_rates(value: float, said: str):
    assert rounded(value) == said


class StandIn:
    steps, step = 12, 0


def test_a_terminal_shows_a_bar_and_each_epoch_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=160, soft_wrap=True, highlight=False)
        with shown(StandIn(), console) as report:  # type: ignore[arg-type]
            for step in range(1, 13):
                ends = step % 4 == 0
                report(replace(STEP, step=step, epoch=1 + (step - 1) // 4, validation_seconds=1.0 if ends else None))
        said = console.file.getvalue()  # type: ignore[attr-defined]
        assert [f"epoch {epoch}/3 · loss" in said for epoch in (1, 2, 3)] == [True] * 3
        assert ("q/s" in said) == terminal and "queries/s" in said
