"""`dexml import`: a bundle of a model and labels that are there already."""

from __future__ import annotations

import math
from pathlib import Path

import click

EPILOG = """Examples:

\b
  dexml import --model minilm --labels labels.jsonl --out mine      lines like {"id": "B1", "text": "usb c cable"}
  dexml import --model MODEL_FOLDER --labels labels.jsonl --embeddings rows.npy --out mine
"""


@click.command("import", epilog=EPILOG)
@click.option("--model", required=True, help="A sentence-transformers folder, dexml's encoder folder, minilm, or a hub name.")
@click.option("--revision", help="The revision of a hub name.")
@click.option("--labels", "file", type=click.Path(path_type=Path), required=True, help='JSON Lines of {"id", "text"}; .gz too.')
@click.option(
    "--embeddings", type=click.Path(path_type=Path), help="The labels' rows (L, D), a .npy file; they are not encoded."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's folder, a new one.")
@click.option("--temperature", type=float, default=0.05, show_default=True, help="Of the probabilities; the order stays.")
@click.option("--index", default="auto", show_default=True, help="exact, faiss, or what suits this machine.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="How much of a text is read, at most."
)
@click.option("--name", help="What the bundle calls itself; default: the name of its folder.")
def import_(
    model: str,
    revision: str | None,
    file: Path,
    embeddings: Path | None,
    out: Path,
    temperature: float,
    index: str,
    max_tokens: int,
    name: str | None,
) -> None:
    """Make a bundle of any sentence-transformers model and a file of labels, without a training.

    Every label's row is the embedding of its text, or the row of --embeddings of the same number, made a unit row. Queries
    are encoded as the labels are, behind the model's default prompt where it has one. The bundle is searched, served and
    changed as any other.
    """
    from dexml.errors import InputError
    from dexml.text import text_fault
    from training.exporters.folder import refuse_existing

    if not 0 < temperature < math.inf:
        raise InputError(f"--temperature must be above 0, got {temperature}")
    if name is not None and (fault := text_fault(name)):
        raise InputError(f"--name {fault.words}")
    refuse_existing(out)
    from rich.console import Console
    from rich.progress import Progress

    from index import INDEXES
    from training.imports import encode, import_bundle, open_model, read_labels, read_rows

    if index != "auto":
        INDEXES.options(index, {})  # an unknown one is told before the work
    labels = read_labels(file)
    opened = open_model(model, revision, max_tokens)
    console = Console(stderr=True)
    if embeddings is not None:
        rows = read_rows(embeddings, labels, opened.dimension)
    else:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("encoding", total=len(labels))
            rows = encode(opened, labels.texts, lambda done: bar.update(task, completed=done))
    local = Path(model).is_dir()
    origin = {
        "model": str(Path(model).resolve()) if local else model,
        "revision": revision,
        "labels": str(file.resolve()),
        "embeddings": None if embeddings is None else str(embeddings.resolve()),
        "max_tokens": opened.encoder.max_tokens,
    }
    served = import_bundle(out, name or out.resolve().name, opened, labels, rows, index, temperature, origin)
    click.echo(f"index: {', '.join(f'{key} {value}' for key, value in served.items())}", err=True)
    click.echo(f"{out}: {len(labels):,} labels, {opened.dimension} dimensions")
