"""The bar that a person sees while files are read; without a terminal there is none."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from data import open_format
from data.progress import reading


def shown(root: Path, *, terminal: bool) -> str:
    screen = StringIO()
    with reading(Console(file=screen, force_terminal=terminal, width=100)) as tell:
        assert len(open_format(root, tell=tell).read("train")) == 10_000
    return screen.getvalue()


def test_a_terminal_sees_the_file_and_a_pipe_nothing(tmp_path: Path):
    (tmp_path / "labels.jsonl").write_text('{"id": "a", "text": "x"}\n')
    (tmp_path / "train.jsonl").write_text('{"text": "a text", "labels": ["a"]}\n' * 10_000)
    assert "train.jsonl" in shown(tmp_path, terminal=True)
    assert shown(tmp_path, terminal=False) == ""
