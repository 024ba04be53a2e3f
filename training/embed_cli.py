"""`dexml embed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from training.engine_options import engine_options

if TYPE_CHECKING:
    from training.parts import Done

EPILOG = """Examples:

\b
  dexml embed demo/run questions.txt rows
  dexml embed runs/mine products.parquet rows --side label --engine ray --workers 8
  dexml embed runs/mine products.jsonl.gz rows --engine ray --ray-address 10.0.0.1:6379
"""


@click.command(epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("texts", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@engine_options
@click.option("--side", type=click.Choice(["query", "label"]), default="query", show_default=True, help="What the texts are.")
@click.option("--rows", type=click.IntRange(min=1), default=4096, show_default=True, help="Texts of a part.")
def embed(
    run: Path,
    texts: Path,
    out: Path,
    engine: str,
    workers: int | None,
    address: str | None,
    side: Literal["query", "label"],
    rows: int,
) -> None:
    """Embed TEXTS with the model of RUN (a run or a bundle) into the folder OUT: numbered parts of unit rows, float32.

    TEXTS is a file of any size: .txt with a text a line, or .jsonl, .csv or .parquet with a field "text". A part appears whole
    or not at all. After a Ctrl-C, a kill or a lost node the same command goes on, and the rows are the same; with another
    model, side or TEXTS it is refused. `training.parts.Rows.open(OUT)` reads the rows.
    """
    import time

    from rich.console import Console
    from rich.markup import escape

    from data.texts import stream_texts
    from dexml.bundle import Bundle
    from training.display import clock, rounded
    from training.embed import Embedding
    from training.embed_display import embedding
    from training.engine_options import engine_of
    from training.interrupts import interruptible

    chosen = engine_of(engine, workers, address)
    stream_texts(texts)  # a name that tells no format is told before the bundle is read
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    bundle = Bundle.open(run)
    began = time.monotonic()
    with console.status(f"reading {escape(texts.name)}"):
        job = Embedding.of(bundle, texts, out, side, rows)
    with interruptible() as interrupted, embedding(console, interrupted) as seen:
        done = job.go(chosen, stream_texts(texts, seen.tell), seen.report)
    speed = f"{rounded(seen.made / max(time.monotonic() - began, 1e-9))} texts/s, {clock(time.monotonic() - began)}"
    if done is None:
        console.print(f"stopped after {seen.made + seen.kept:,} texts ({speed}); the same command goes on")
        raise SystemExit(130)
    click.echo(_said(out, done, bundle.manifest.dimension, seen.kept, speed))
    if unknown := _unknown(out, done):
        click.echo(f"note: the model knows no word of {unknown:,} texts; their rows are 0", err=True)


def _said(out: Path, done: Done, dimension: int, kept: int, speed: str) -> str:
    before = f", {kept:,} of them were there already" if kept else ""
    return f"{out}: {done.rows:,} rows of {dimension} in {done.parts:,} parts{before}; {speed}"


def _unknown(out: Path, done: Done) -> int:
    from training.parts import finished

    return sum(part.unknown for number in range(done.parts) if (part := finished(out, number)) is not None)
