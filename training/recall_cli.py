"""`dexml memory`: training queries kept in a bundle that is there already, and weighed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from data.format import Format
    from dexml.types import Int64Array, LabelTable, Split

EPILOG = """Examples:

\b
  dexml memory mine --data DIR                   all training queries of DIR, weighed on some that are held out
  dexml memory mine --data DIR --texts           with their texts, to be shown to whoever asks why
  dexml memory runs/mine --fit validation        weighed on a split that the model was not trained on
  dexml memory mine --remove
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", "folder", type=click.Path(path_type=Path), help="The data set; default: the one that the bundle names.")
@click.option("--split", default="train", show_default=True, help="The split whose queries are kept.")
@click.option("--queries", type=click.IntRange(min=1), help="How many, drawn at random; default: all.")
@click.option("--texts", is_flag=True, help="Keep their texts too: whoever may search may read them.")
@click.option("--fit", metavar="SPLIT", help="Weigh them on this split; default: on rows held out, where nothing was trained.")
@click.option("--weight", type=click.FloatRange(min=0), help="λ, instead of the best one found.")
@click.option("--remove", is_flag=True, help="Forget them: publish the bundle without a memory.")
def memory(
    bundle: Path,
    folder: Path | None,
    split: str,
    queries: int | None,
    texts: bool,
    fit: str | None,
    weight: float | None,
    remove: bool,
) -> None:
    """Keep training queries in BUNDLE: labels of those nearest to a query are lifted in its answer.

    How much is chosen on rows that are not among them. A model knows the rows it was trained on too well to tell: for a trained
    bundle name another split (--fit), or let `dexml train` do it ([memory] queries = "all"); else published values are taken.
    """
    from rich.console import Console

    from data import open_format
    from dexml.bundle import Bundle, extend
    from dexml.errors import InputError
    from training.config import MemorySection
    from training.recall import forgotten, remember, usual, weigh, written

    opened = Bundle.open(bundle)
    if remove:
        if opened.memory is None:
            raise InputError(f"bundle: {opened.root} keeps no training queries")
        without = extend(bundle, forgotten, {"memory": None})
        click.echo(f"no training queries are kept; the bundle is now {without.root.name}")
        return
    section = MemorySection(queries=queries or "all", texts=texts, weight="auto" if weight is None else weight)
    facts = opened.manifest.data
    files = open_format(folder or Path(facts.path), "auto" if folder else facts.format)
    rows = rows_of(files, split, opened.labels)
    model, temperature = opened.model(), opened.manifest.temperature
    with Console(stderr=True).status("encoding queries") as status:
        encoded = model.embed_queries(rows.texts)[0]
        kept = remember(rows, encoded, section, 0)
        if kept is None:
            raise InputError(f"data: no row of {split} has a label of this bundle and a word that the model knows")
        status.update("weighing")
        weighed = usual(section)
        if fit is not None:
            watched = rows_of(files, fit, opened.labels)
            asked = model.embed_queries(watched.texts)[0]
            weighed = weigh(kept, opened.embeddings, asked, watched.positives, temperature, section)
        elif opened.manifest.training.step == 0:
            trained, held = held_out(rows)
            part = remember(rows.take(trained), encoded[trained], section, 0)
            if part is not None and len(held):
                weighed = weigh(part, opened.embeddings, encoded[held], rows.positives.take(held), temperature, section)
    if opened.calibration is not None:
        click.echo("note: the calibration was fitted to other answers and is gone; `dexml calibrate` fits one", err=True)
    extended = extend(bundle, written(kept), {"memory": weighed.facts(kept)})
    click.echo(f"{len(kept):,} training queries, {weighed}")
    click.echo(f"the bundle is now {extended.root.name}")


def rows_of(files: Format, split: str, labels: LabelTable) -> Split:
    """Return a split over the bundle's labels, by id; others are left out. Raises InputError where most of them are others."""
    import numpy as np
    import scipy.sparse as sp

    from dexml.errors import InputError
    from dexml.types import Positives, Split

    table, rows = files.labels(), files.read(split)
    matrix = rows.positives.matrix()
    numbers = {label: number for number, label in enumerate(table.ids)}
    columns = [numbers.get(label, -1) for label in labels.ids]
    known = sum(column >= 0 for column in columns)
    if 2 * known < len(columns):
        raise InputError(f"data: {known} of the bundle's {len(columns)} labels are in {files.root}; is it another data set?")
    wide = sp.hstack([matrix.tocsc(), sp.csc_array((matrix.shape[0], 1))], format="csc")  # −1 takes the empty column
    return Split(rows.texts, Positives.from_matrix(wide[:, np.array(columns)]))


def held_out(rows: Split) -> tuple[Int64Array, Int64Array]:
    """Return the numbers of rows to keep and of rows to try that on, as a training would hold them out."""
    from data.validation import split_by_labels
    from training.config import ValidationSection

    section = ValidationSection()
    return split_by_labels(rows.positives, section.fraction, 0, section.max_rows)
