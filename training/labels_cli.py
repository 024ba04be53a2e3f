"""`dexml labels`: the labels of a bundle, added, replaced, deleted and listed, without a training."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from data.jsonl import LabelLine
    from dexml.label_log import Change
    from dexml.model import DualEncoder
    from index.store import Store

FEW = 20_000  # labels compared with an unknown one for the hint: difflib takes 20 µs each

EPILOG = """Examples:

\b
  dexml labels add runs/mine new.jsonl        lines like {"id": "B1", "text": "usb c cable"}
  dexml labels delete runs/mine B1 B2
  dexml labels list runs/mine > labels.jsonl
"""


@click.group(epilog=EPILOG)
def command() -> None:
    """Add, replace, delete and list the labels of a bundle. What is told to be done survives a power cut."""


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--if-exists", type=click.Choice(["replace", "error"]), default="replace", show_default=True)
def add(bundle: Path, file: Path, if_exists: str) -> None:
    """Add the labels of FILE to BUNDLE, or put them in place of those with the same ids.

    FILE is JSON Lines (.gz too): {"id", "text"} to be encoded as any label that was not trained, or {"id", "embedding"} with
    perhaps a text to show. The whole file is read before the first label is written; then a thousand at a time are.
    """
    from rich.console import Console
    from rich.progress import track

    from data.jsonl import read_label_lines
    from dexml.errors import InputError
    from index.store import MOST, Store, unit_row

    with Store.open(bundle, writable=True) as store:
        lines, width = list(read_label_lines(file)), store.bundle.manifest.dimension
        for line in lines:
            if line.embedding is not None:
                unit_row(line.embedding, width, f"{line.where}, embedding:")
            if if_exists == "error" and line.id in store.live.labels:
                raise InputError(
                    f"{line.where}, id: the bundle has a label {line.id!r} already (--if-exists replace puts it there)"
                )
        model = store.bundle.model() if any(line.embedding is None for line in lines) else None
        console, added, replaced = Console(stderr=True), 0, 0
        starts = range(0, len(lines), MOST)
        for start in track(starts, "adding", console=console, transient=True, disable=not console.is_terminal):
            done = store.write(_changes(lines[start : start + MOST], model, width))
            added, replaced = added + done.changed.added, replaced + done.changed.replaced
        click.echo(f"{added:,} added, {replaced:,} replaced; {len(store.live.labels):,} labels in {store.name}")
        _compact_where_due(store)


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("ids", nargs=-1)
@click.option("--file", type=click.Path(path_type=Path), help="A file with one id a line.")
@click.option("--missing-ok", is_flag=True, help="Pass over ids that the bundle does not have.")
def delete(bundle: Path, ids: tuple[str, ...], file: Path | None, missing_ok: bool) -> None:
    """Delete the labels IDS from BUNDLE. An id that it does not have stops before anything is deleted."""
    from data.lines import read_lines
    from dexml.errors import InputError
    from dexml.label_log import Change
    from index.store import MOST, Store

    named = [*ids, *([] if file is None else (line for line in read_lines(file) if line))]
    if not named:
        raise click.UsageError("name the labels to delete, or give --file")
    with Store.open(bundle, writable=True) as store:
        labels = store.live.labels
        wanted = list(dict.fromkeys(named))
        missing = [name for name in wanted if name not in labels]
        if missing and not missing_ok:
            live = [labels.ids[row] for row in labels.live().tolist()] if len(labels) <= FEW else []
            close = get_close_matches(missing[0], live, 1)
            raise InputError(f"label: {bundle} has no label {missing[0]!r}{f'; did you mean {close[0]!r}?' if close else ''}")
        there = [name for name in wanted if name in labels]
        for start in range(0, len(there), MOST):
            store.write([Change(name) for name in there[start : start + MOST]])
        click.echo(f"{len(there):,} deleted; {len(store.live.labels):,} labels in {store.name}")
        _compact_where_due(store)


@command.command("list")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--embeddings", is_flag=True, help="With their rows: what `add` takes back.")
def list_(bundle: Path, embeddings: bool) -> None:
    """Print the labels of BUNDLE as JSON Lines, in row order."""
    from index.store import Store

    live = Store.open(bundle).live
    rows = live.labels.live()
    try:
        for start in range(0, len(rows), 1024):
            part = rows[start : start + 1024]
            vectors = live.index.snapshot(part).tolist() if embeddings else [None] * len(part)
            for row, vector in zip(part.tolist(), vectors, strict=True):
                label = {"id": live.labels.ids[row], "text": live.labels.texts[row]}
                click.echo(json.dumps(label if vector is None else {**label, "embedding": vector}, ensure_ascii=False))
    except BrokenPipeError:  # `| head`
        sys.stderr.close()


def _changes(lines: Sequence[LabelLine], model: DualEncoder | None, width: int) -> list[Change]:
    """Return lines as changes: texts encoded, embeddings as they are. Raises InputError for a text of unknown words."""
    from dexml.errors import InputError
    from dexml.label_log import Change
    from index.store import unit_row

    texts = [line.text for line in lines if line.embedding is None and line.text is not None]
    encoded = iter([] if model is None else model.embed_labels(texts).numpy())
    rows = [next(encoded) if line.embedding is None else unit_row(line.embedding, width, line.where) for line in lines]
    for line, row in zip(lines, rows, strict=True):
        if not row.any():
            raise InputError(f"{line.where}, text: the model knows no word of it; give an embedding")
    return [Change(line.id, line.text or line.id, row) for line, row in zip(lines, rows, strict=True)]


def _compact_where_due(store: Store) -> None:
    if store.due:
        click.echo(f"compacting {store.live.index.stray:,} rows", err=True)
        click.echo(f"now {store.compact()}", err=True)
