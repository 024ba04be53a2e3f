"""What `dexml index --collisions` prints: how near the labels of a bundle come to each other, and which."""

from __future__ import annotations

import json
from pathlib import Path

import click


def show(bundle: Path, as_json: bool) -> None:
    """Print the collisions among the live labels of a bundle."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from index.collisions import SAME, collisions
    from index.store import Store

    with Store.open(bundle) as store:
        live = store.live
        numbers = live.labels.live()
        with Console(stderr=True).status("asking every label for its nearest others"):
            found = collisions(live.index.snapshot(numbers))
        names = [(live.labels.ids[number], live.labels.texts[number]) for number in numbers.tolist()]
    if as_json:
        pairs = [{"labels": [names[i][0], names[j][0]], "cosine": cosine} for i, j, cosine in found.pairs]
        click.echo(json.dumps({**found.figures(), "pairs": pairs}, indent=1, ensure_ascii=False))
        return
    figures = found.figures()
    table = Table(title=f"{found.labels:,} labels in {found.dimension} dimensions: the nearest pairs")
    for column in ("cosine", "label", "and"):
        table.add_column(column, justify="right" if column == "cosine" else "left")
    for i, j, cosine in found.pairs:
        table.add_row(f"{cosine:.4f}", *(escape(f"{names[n][0]}: {names[n][1]}"[:60]) for n in (i, j)))
    Console(highlight=False).print(table)
    bound, ratio = figures["welch_bound"], found.ratio
    said = "labels could all stand at right angles" if ratio is None else f"{ratio:.1f} times Welch's bound of {bound:.4f}"
    click.echo(f"max |cos| {found.most:.4f}, {said}; least cosine {found.opposed:.4f}")
    shares = ", ".join(f"{share} of labels {cosine:.3f}" for share, cosine in figures["nearest_cosine_of"].items())
    click.echo(f"cosine of the nearest other label, at most: {shares or 'there is none'}")
    click.echo(f"{figures['labels_that_collide']:,} labels have another at {SAME} or nearer")
