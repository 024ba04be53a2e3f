"""What every step and validation of a run was, one JSON per line in OUT/history.jsonl, as it goes.

{"kind": "step", "phase": 1, "step": 12, "epoch": 2, "loss": …, "rate": …, "gradient_norm": …, "queries": …, "scores": …,
 "seconds": …, "collapsed": {"float32": …, "float16": …, "bfloat16": …}} and
{"kind": "validation", "phase": 1, "step": 20, "epoch": 2, "P@1": …, "P@3": …, "P@5": …, "seconds": …}

A line is written whole before the next step starts, so that a killed process loses nothing but the step it was in, and a
checkpoint is never ahead of the history.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dexml.errors import InputError
from training import checkpoint

if TYPE_CHECKING:
    from training.run import Progress

FILE = "history.jsonl"


class History:
    """The history of the run in `out`, open for more; `after` is the (phase, step) of a checkpoint that is gone on from.

    Without it the history starts anew. With it, everything later goes, and so does a line that a crash left half written.
    """

    def __init__(self, out: Path, after: tuple[int, int] | None = None) -> None:
        self.out = out
        self.path = out / FILE
        try:
            kept = 0 if after is None else _end(self.path, after)
            self._file = self.path.open("ab", buffering=0)
            os.truncate(self.path, kept)
        except OSError as error:
            raise InputError(f"history: {self.path} cannot be written: {error.strerror or error}") from None

    def write(self, now: Progress) -> None:
        """Write down a step, and the validation after it. Raises InputError when the disk is full, and says what is intact."""
        lines: list[dict[str, Any]] = [
            {
                "kind": "step",
                "phase": now.phase,
                "step": now.step,
                "epoch": now.epoch,
                "loss": now.loss,
                "rate": now.rate,
                "gradient_norm": now.gradient_norm,
                "queries": now.queries,
                "scores": now.scores,
                "seconds": round(now.step_seconds, 6),
            }
        ]
        if now.collapsed is not None:
            lines[0]["collapsed"] = dict(now.collapsed)
        if now.validation_seconds is not None:
            figures = {"P@1": now.precision_1, "P@3": now.precision_3, "P@5": now.precision_5}
            place = {"kind": "validation", "phase": now.phase, "step": now.step, "epoch": now.epoch}
            lines.append({**place, **figures, "seconds": round(now.validation_seconds, 6)})
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        try:
            written = self._file.write(content)
            if written != len(content):  # the disk took a part; the rest says why
                self._file.write(content[written:])
        except OSError as error:
            raise InputError(
                f"history: {self.path} cannot be written: {error.strerror or error}; the run stopped at step {now.step}, "
                f"{checkpoint.last_good(self.out)}; make room and go on with --resume"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's history; a last line that was never finished is left out, no file is no lines."""
    try:
        with (out / FILE).open("rb") as file:
            return [line for line, _ in _lines(file.read())]
    except FileNotFoundError:
        return []


def _lines(content: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each whole line with the place where it ends; what follows the first that is no JSON object is no history."""
    place = 0
    for raw in content.splitlines(keepends=True):
        if not raw.endswith(b"\n"):
            return
        try:
            line = json.loads(raw)
        except (json.JSONDecodeError, UnicodeDecodeError):
            return
        if not isinstance(line, dict):
            return
        place += len(raw)
        yield line, place


def _end(path: Path, after: tuple[int, int]) -> int:
    """Return how many bytes belong to lines at or before `after`."""
    if not path.exists():
        return 0
    end = 0
    for line, place in _lines(path.read_bytes()):
        if (line.get("phase", 0), line.get("step", 0)) > after:
            break
        end = place
    return end
