"""`dexml head`: a head with a vector of its own for each label, behind the rows of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

EPILOG = """Examples:

\b
  dexml head runs/mine runs/mine-svm                             a linear SVM for each label
  dexml head runs/mine runs/mine-svm --set cost=1 --set positive_weight=5
  dexml head runs/mine runs/mine-z --loss z_loss
  dexml head runs/mine runs/mine-ridge --loss ridge --features 1024    in one solve, over kernel features of the rows
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--loss", "name", default="squared_hinge", show_default=True, help="squared_hinge, z_loss or ridge.")
@click.option("--features", type=click.IntRange(min=1), metavar="M", help="Put M random kernel features behind the rows first.")
@click.option("--data", "folder", type=click.Path(path_type=Path), help="The data set; default: the one that the bundle names.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set an option of the head; others are tried.")
@click.option(
    "--fraction", type=click.FloatRange(0, 0.9), default=0.1, show_default=True, help="Training rows held out to choose on."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which rows are held out.")
def head(
    bundle: Path,
    out: Path,
    name: str,
    features: int | None,
    folder: Path | None,
    settings: tuple[str, ...],
    fraction: float,
    seed: int,
) -> None:
    """Fit a head on the training texts' rows in BUNDLE, and publish it as the bundle OUT; BUNDLE stays as it is.

    Options are chosen on training rows held out, whole label sets at a time; then all rows are fitted. The model is not trained
    further. Labels without a training row, and those that come later, keep what their text says.
    """
    import numpy as np
    from rich.console import Console
    from rich.markup import escape

    from data import open_format
    from data.validation import split_by_labels
    from dexml.bundle import Bundle
    from dexml.errors import InputError
    from dexml.heads import HEADS
    from training.exporters.folder import refuse_existing
    from training.heads import Base, publish_head, select, with_features
    from training.recall_cli import rows_of

    refuse_existing(out)
    options = _options(settings)
    HEADS.options(name, options)  # a wrong one is told before the work
    options = {key: HEADS.options(name, options)[key] for key in options}
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    opened = Bundle.open(bundle)
    facts = opened.manifest.data
    train = rows_of(open_format(folder or Path(facts.path), "auto" if folder else facts.format), "train", opened.labels)
    rest, watched = split_by_labels(train.positives, fraction, seed, 500)
    if len(train.positives.indices) == 0:
        raise InputError("data: no training row has a label of this bundle")
    tried = {key: values for key, values in HEADS[name].grid.items() if key not in options}
    if tried and len(watched) == 0:
        raise InputError(f"--fraction: no rows are held out to choose {', '.join(tried)} on; set them (--set)")
    model, texts = opened.model(), opened.embeddings
    if features is not None:
        model, texts = with_features(model, texts, features)
    with console.status("encoding training texts"):
        base = Base.of(texts, model, train)
    console.print(f"{len(rest):,} training rows, {len(watched):,} held out, {len(opened.labels):,} labels")
    with console.status("fitting"):
        chosen = select(base.take(rest), base.take(watched), name, options, lambda text: console.print(escape(text)))
        root, said = publish_head(out, opened, model, base, np.asarray(watched), train, name, chosen)
    console.print(said)
    click.echo(f"{root}: {name} with {', '.join(f'{key} {value:g}' for key, value in chosen.options.items())}")


def _options(settings: tuple[str, ...]) -> dict[str, Any]:
    from dexml.config import override

    options: dict[str, Any] = {}
    for setting in settings:
        override(options, setting)
    return options
