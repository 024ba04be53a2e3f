"""What a person sees of an embedding job: a bar with the share of the file, texts a second and what was there already."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.display import SILENT_SECONDS, rounded

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Seen:
    """How many texts were embedded (`made`) or found finished (`kept`); `report` and `tell` keep it, `show` draws it."""

    interrupted: Callable[[], bool]
    show: Callable[[Seen], None] = lambda seen: None
    made: int = 0
    kept: int = 0
    share: float = 0.0

    def report(self, texts: int, before: bool) -> bool:
        """Count a part; return whether to go on."""
        self.kept, self.made = self.kept + texts * before, self.made + texts * (not before)
        self.show(self)
        return not self.interrupted()

    def tell(self, path: Path, share: float) -> None:
        """Take note of how much of the file has been read."""
        self.share = share


@contextmanager
def embedding(console: Console, interrupted: Callable[[], bool]) -> Iterator[Seen]:
    """Show a bar on a terminal while the block runs, and a line a minute elsewhere; what is yielded is told of the parts."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    began = said = time.monotonic()
    columns = (
        TextColumn("embedding"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)

        def show(seen: Seen) -> None:
            nonlocal said
            now = time.monotonic()
            text = f"{seen.made:,} texts · {rounded(seen.made / max(now - began, 1e-9))} texts/s"
            text += f" · {seen.kept:,} were there" if seen.kept else ""
            bar.update(task, completed=seen.share, description=text)
            if not console.is_terminal and now - said > SILENT_SECONDS:
                said = now
                console.print(f"{text} · {100 * seen.share:.0f}% of the file")

        yield Seen(interrupted, show)
