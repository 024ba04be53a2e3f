"""`dexml export`."""

from __future__ import annotations

from pathlib import Path

import click

SAMPLE = 64  # texts on which the graph is compared with torch

EPILOG = """Examples:

\b
  dexml export runs/mine --onnx
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--onnx", is_flag=True, help="Write encoder/onnx/model.onnx.")
def export(bundle: Path, onnx: bool) -> None:
    """Write the encoder of BUNDLE in another form, into BUNDLE itself, once it has been found equal to torch's.

    With --onnx, encoder/onnx/model.onnx turns tokens (of a transformer), features and weights (of a bag), or both, into the
    embedding: dexml.onnx_graph names them and reads texts into them. The bundle's checksum, and so its name, changes.
    """
    from dexml import onnx_graph
    from dexml.bundle import Bundle, extend

    if not onnx:
        raise click.UsageError("say what to write: --onnx")
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
