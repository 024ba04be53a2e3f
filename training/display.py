"""What a person sees of a training: a bar with speed and time to go, and a line per epoch that stays."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from training.run import Progress, Run

WINDOW_SECONDS = 10.0  # of steps, over which speeds are averaged
SILENT_SECONDS = 60.0  # after so long without a line where there is no terminal, one says how far it is


class Speed:
    """Throughput over the last steps, and the time to go by it."""

    def __init__(self) -> None:
        self._last: deque[Progress] = deque()
        self._seconds = 0.0
        self._validation_seconds = 0.0

    def add(self, now: Progress) -> None:
        """Take a step into account, and forget those before the window; at least the last one stays."""
        self._last.append(now)
        self._seconds += now.step_seconds
        while len(self._last) > 1 and self._seconds - self._last[0].step_seconds >= WINDOW_SECONDS:
            self._seconds -= self._last.popleft().step_seconds
        if now.validation_seconds is not None:
            self._validation_seconds = now.validation_seconds

    def queries(self) -> float:
        """Return queries per second."""
        return sum(step.queries for step in self._last) / max(self._seconds, 1e-9)

    def scores(self) -> float:
        """Return label scores per second."""
        return sum(step.scores for step in self._last) / max(self._seconds, 1e-9)

    def to_go(self) -> float:
        """Return the seconds to the last step, a validation after every epoch included."""
        now = self._last[-1]
        epochs = now.epochs - now.epoch + (now.validation_seconds is None)
        steps = now.steps - now.step
        return steps * self._seconds / len(self._last) + (epochs * self._validation_seconds if steps else 0.0)

    def __str__(self) -> str:
        """Return "1,234 queries/s · 17 M label scores/s"."""
        return f"{rounded(self.queries())} queries/s · {rounded(self.scores())} label scores/s"


@contextmanager
def shown(run: Run, console: Console) -> Iterator[Callable[[Progress], None]]:
    """Show a bar while a run trains; what is yielded takes its progress. Each epoch leaves a line, also without a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[more]}"),
    )
    with Bar(*columns, console=console, transient=True, expand=True) as bar:
        task = bar.add_task("training", total=run.steps, completed=run.step, more="")
        speed, said = Speed(), time.monotonic()

        def report(now: Progress) -> None:
            nonlocal said
            speed.add(now)
            short = f"{rounded(speed.queries())} q/s · {rounded(speed.scores())} scores/s · {clock(speed.to_go())} left"
            bar.update(
                task, completed=now.step, description=f"epoch {now.epoch}/{now.epochs} · loss {now.loss:.4f}", more=short
            )
            ends = now.step * now.epochs % now.steps == 0
            silent = not console.is_terminal and time.monotonic() - said > SILENT_SECONDS
            if ends or silent:
                said = time.monotonic()
                console.print(line(now, speed, ends=ends))

        yield report


def both(first: Callable[[Progress], None], then: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Return what tells one and then the other."""

    def report(now: Progress) -> None:
        first(now)
        then(now)

    return report


def line(now: Progress, speed: Speed, *, ends: bool) -> str:
    """Return the line that an epoch leaves behind, or that says how far it is."""
    parts = [f"epoch {now.epoch}/{now.epochs}" if ends else f"step {now.step:,}/{now.steps:,}"]
    parts.append(f"loss {now.loss:.4f} · rate {now.rate:.2g} · gradient {now.gradient_norm:.2g}")
    if now.precision_1 is not None:
        parts.append(f"validation P@1 {now.precision_1:.1f} P@3 {now.precision_3:.1f} P@5 {now.precision_5:.1f}")
    parts += [str(speed), clock(now.seconds)]
    if now.step < now.steps:
        parts.append(f"{clock(speed.to_go())} left")
    return " · ".join(parts)


def clock(seconds: float) -> str:
    """Return a duration as one would say it: 3.2 s, 4:05, 2:03:10."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rounded(value: float) -> str:
    """Return a rate with two or three digits and its thousands as a letter: 950, 1.23 k, 17 M, 2.1 G."""
    for unit in ("", " k", " M", " G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} T"
