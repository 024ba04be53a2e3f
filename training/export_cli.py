"""`dexml export`: the labels of a bundle somewhere else, or its encoder in another form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic.fields import FieldInfo

from dexml.table import option_model
from training.exporters import EXPORTERS

SAMPLE = 64  # texts on which the graph is compared with torch

EPILOG = """Examples:

\b
  dexml export runs/mine --to npy --out rows
  dexml export runs/mine --to hub-folder --out mine
  dexml export runs/mine --to qdrant --url http://localhost:6333 --collection labels
  dexml export runs/mine --to pgvector --dsn postgresql://me@localhost/shop --table labels
  dexml export runs/mine --to milvus --url http://localhost:19530 --collection labels
  dexml export runs/mine --onnx
"""


def _fields() -> dict[str, tuple[FieldInfo, list[str]]]:
    """Return the options of all targets by name, each with the targets that have it."""
    fields: dict[str, tuple[FieldInfo, list[str]]] = {}
    for target in EXPORTERS:
        for name, field in option_model(EXPORTERS[target]).model_fields.items():
            fields.setdefault(name, (field, []))[1].append(target)
    return fields


def _of_all_targets(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every field of a target."""
    for name, (field, targets) in reversed(_fields().items()):
        told = f"{', '.join(targets)}: {field.description}"
        if field.annotation is bool:
            option = click.option(f"--{name}", is_flag=True, default=None, help=told)
        else:
            is_path = field.annotation in (Path, Path | None)
            option = click.option(f"--{name}", type=click.Path(path_type=Path) if is_path else str, help=told)
        command = option(command)
    return command


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--to", "target", metavar="TARGET", help=f"Where the labels go: {', '.join(EXPORTERS)}.")
@click.option("--onnx", is_flag=True, help="Write the encoder as encoder/onnx/model.onnx into BUNDLE.")
@_of_all_targets
def export(bundle: Path, target: str | None, onnx: bool, **options: Any) -> None:
    """Export the labels of BUNDLE as they are now, with ids, texts and rows; or its encoder as an ONNX graph.

    With --to, labels that were added are among them, and labels that were deleted are not. BUNDLE stays as it is.

    With --onnx, encoder/onnx/model.onnx turns tokens (of a transformer), features and weights (of a bag), or both, into the
    embedding, once it has been found equal to torch's: dexml.onnx_graph names them and reads texts into them. The bundle's
    checksum, and so its name, changes.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if onnx == (target is not None):
        raise click.UsageError("say what to write: --to TARGET, or --onnx")
    if target is not None:
        _export_labels(bundle, target, given)
    elif given:
        raise click.UsageError(f"--{next(iter(given))} does not go with --onnx")
    else:
        _export_graph(bundle)


def _export_labels(bundle: Path, target: str, given: dict[str, Any]) -> None:
    from dexml.errors import InputError

    kind = EXPORTERS[target]
    fields = option_model(kind).model_fields
    if strange := [name for name in given if name not in fields]:
        raise InputError(f"--{strange[0]} does not go with --to {target}")
    if missing := [name for name, field in fields.items() if field.is_required() and name not in given]:
        raise InputError(f"--to {target} needs --{missing[0]}")
    kind.check()
    exporter = EXPORTERS.build(target, given)
    from rich.console import Console
    from rich.progress import Progress

    from index.store import Store
    from training.exporters.base import Source

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("exporting", total=None)
        store = Store.open(bundle, index="exact")  # its own may take time to load, and nothing is searched
        bar.update(task, total=len(store.live.labels))
        where = exporter.export(Source.of(store, lambda done: bar.update(task, completed=done)))
    click.echo(f"{where}; {len(store.live.labels):,} labels of {store.name}")


def _export_graph(bundle: Path) -> None:
    from dexml import onnx_graph
    from dexml.bundle import Bundle, extend

    onnx_graph.check()
    opened = Bundle.open(bundle)
    model = opened.model()
    # The longest and the shortest label, none at all, and what lies between.
    texts = sorted({*opened.manifest.examples, *opened.labels.texts, ""}, key=len, reverse=True)
    texts = texts[:: max(1, len(texts) // SAMPLE)]
    difference = 0.0

    def add(folder: Path) -> None:
        nonlocal difference
        difference = onnx_graph.export(model, folder / "encoder" / "onnx", texts)

    extended = extend(bundle, add)
    graph = extended.root / "encoder" / "onnx" / "model.onnx"
    size = sum(file.stat().st_size for file in graph.parent.iterdir()) / 1e6
    click.echo(
        f"{graph}: {size:.1f} MB; largest difference from torch on {len(texts)} texts: {difference:.1e} "
        f"({onnx_graph.TOLERANCE:.0e} is allowed)"
    )
    click.echo(f"the bundle is now {extended.name}")
