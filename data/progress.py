"""What a person sees while a data set is read: a bar for the file that is being read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from data.lines import Tell

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def reading(console: Console) -> Iterator[Tell]:
    """Show a bar on a terminal while the block runs; what is yielded is told which file is read and how much of it is done."""
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading {task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[Path, TaskID] = {}

        def tell(path: Path, share: float) -> None:
            if path not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[path] = bar.add_task(escape(path.name), total=1.0)
            bar.update(tasks[path], completed=share, visible=True)

        yield tell
