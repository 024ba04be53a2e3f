"""Trackers get every step: TensorBoard's files are read back and hold what the history holds."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from dexml.__main__ import main
from dexml.errors import InputError
from training.history import read
from training.run import Progress
from training.trackers import TRACKERS, Trackers, settle

needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@needs_tensorboard
def test_tensorboard_holds_what_the_history_holds(tiny_config: Path, tmp_path: Path):
    settings = ["validation.fraction=0.3", "validation.refit=true", 'training.trackers=["tensorboard"]', f"out={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(tiny_config), *[part for setting in settings for part in ("--set", setting)]])
    assert ended.value.code == 0
    lines = read(tmp_path)
    names = {"train/loss": "loss", "train/learning rate": "rate", "train/gradient norm": "gradient_norm"}
    for phase in (1, 2):
        found = scalars(tmp_path / "tensorboard" / f"phase_{phase}")
        steps = [line for line in lines if line["phase"] == phase and line["kind"] == "step"]
        for tag, key in names.items():
            assert [step for step, _ in found[tag]] == [line["step"] for line in steps]
            assert [value for _, value in found[tag]] == pytest.approx([line[key] for line in steps], rel=1e-6)
        assert min(value for _, value in found["speed/label scores per second"]) > 0
        watched = [line for line in lines if line["phase"] == phase and line["kind"] == "validation"]
        for k in (1, 3, 5):
            assert found.get(f"validation/P{k}", []) == [(line["step"], pytest.approx(line[f"P@{k}"])) for line in watched]
        assert bool(watched) == (phase == 1)


@needs_tensorboard
def test_a_run_that_goes_on_takes_later_events_back(tmp_path: Path, progress: Callable[..., Progress]):
    def steps(first: int, last: int, after: int = 0) -> None:
        trackers = Trackers(("tensorboard",), tmp_path, "run", 1, {"seed": 0}, after)
        for step in range(first, last + 1):
            trackers.write(progress(step))
        trackers.close()

    steps(1, 8)
    steps(4, 9, after=3)
    found = scalars(tmp_path / "tensorboard" / "phase_1")
    assert [step for step, _ in found["train/loss"]] == list(range(1, 10))


def test_auto_is_tensorboard_where_it_is_and_a_missing_one_is_told_with_its_package():
    assert settle("auto") == (("tensorboard",) if find_spec("tensorboard") else ())
    assert settle(()) == ()
    missing = next((name for name in TRACKERS if find_spec(name) is None), None)
    if missing is None:
        pytest.skip("all trackers are installed")
    with pytest.raises(InputError, match=f"'{missing}' needs the package {missing}: pip install {missing}"):
        settle((missing,))


def test_one_that_nobody_knows_is_refused(tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["train", str(tiny_config), "--set", f"out={tmp_path}", "--set", 'training.trackers=["tensorbord"]'])
    assert "training.trackers" in capsys.readouterr().err


def test_one_that_fails_is_left_and_the_training_goes_on(tmp_path: Path, progress: Callable[..., Progress]):
    class Fails:
        name = "fails"

        def log(self, values: dict[str, float], step: int) -> None:
            raise ConnectionError("nobody there")

        def finish(self) -> None:
            raise ConnectionError("still nobody there")

    said: list[str] = []
    trackers = Trackers((), tmp_path, "run", 1, {}, warn=said.append)
    trackers._open.append(Fails())
    trackers.write(progress(1))
    trackers.write(progress(2))
    trackers._open.append(Fails())
    trackers.close()
    assert said == ["fails stopped at step 1: nobody there", "fails could not be closed: still nobody there"]
