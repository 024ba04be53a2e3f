"""`dexml index`: the versions of a bundle, and the index that its labels are searched by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from index.retriever import Retriever
    from index.tuning import Point

QUERIES, K = 512, 100  # of the training texts; recall is of this many labels

EPILOG = """Examples:

\b
  dexml index runs/mine                       what is there
  dexml index runs/mine --verify              every checksum of every version
  dexml index runs/mine --compact             the labels as they are now become the next version
  dexml index runs/mine --recover             a damaged version made anew from the one before and the logs
  dexml index runs/mine --activate v000001    go back to a version, as it was published
  dexml index runs/mine --recall 0.99         the quickest structure and settings that find 99% of the true top 100
  dexml index runs/mine --recall 0.99 --keep --report tuning.html
  dexml index runs/mine --collisions          labels that stand so near each other that a query cannot tell them apart
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--verify", "action", flag_value="verify", help="Read every file of every version and compare its checksums.")
@click.option("--compact", "action", flag_value="compact", help="Publish the labels as they are now as the next version.")
@click.option("--recover", "action", flag_value="recover", help="Make a damaged version anew from the one before and the logs.")
@click.option("--collisions", "action", flag_value="collisions", help="How near labels come to each other, and which.")
@click.option("--json", "as_json", is_flag=True, help="With --collisions: figures and pairs as JSON.")
@click.option("--activate", "name", metavar="VERSION", help="Publish a kept version anew; writes that came later do not count.")
@click.option("--recall", type=float, metavar="R", help="Find the quickest structure and settings with this recall@100.")
@click.option("--queries", type=click.Path(path_type=Path), help="With --recall: a file of texts; default: training texts.")
@click.option("--keep", is_flag=True, help="With --recall: publish the labels behind what was found.")
@click.option("--report", type=click.Path(path_type=Path), help="With --recall: an HTML page of recall against speed.")
def index(
    bundle: Path,
    action: str | None,
    name: str | None,
    recall: float | None,
    queries: Path | None,
    keep: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    """List the versions of BUNDLE, the writes in their logs and their size; change which one counts, or tune its index."""
    from index.store import Store, activate

    if sum(asked is not None for asked in (action, name, recall)) > 1:
        alone = "--verify, --compact, --recover, --collisions, --activate and --recall"
        raise click.UsageError(f"{alone} are things to do one after the other")
    if as_json and action != "collisions":
        raise click.UsageError("--json goes with --collisions")
    if recall is None and (queries or keep or report):
        raise click.UsageError("--queries, --keep and --report go with --recall")
    if recall is not None:
        _tune(bundle, recall, queries, keep, report)
    elif name:
        click.echo(f"{name} is published anew as {activate(bundle, name)}")
    elif action == "recover":
        from index.recovery import recover

        click.echo(f"everything is there, published as {recover(bundle)}")
    elif action == "compact":
        with Store.open(bundle, writable=True) as store:
            before = store.name
            click.echo(f"{before} is published as {store.compact()}: {len(store.live.labels):,} labels")
    elif action == "verify":
        _verify(bundle)
    elif action == "collisions":
        from training.collisions_report import show

        show(bundle, as_json)
    else:
        _show(bundle)


def _verify(bundle: Path) -> None:
    from dexml import manifest, versions
    from dexml.errors import InputError
    from dexml.label_log import LabelLog

    root = versions.root_of(bundle)
    faults = []
    try:
        versions.current(root)
    except InputError as error:
        faults.append(str(error))
    for name in versions.names(root):
        try:
            found = manifest.read(root / name)
            manifest.verify(root / name, found)
            records = len(LabelLog(versions.log_of(root / name), found.dimension, found.sha256).records)
        except InputError as error:
            faults.append(str(error))
        else:
            click.echo(f"{name}: {len(found.files)} files and {records:,} writes are as they were written")
    if faults:
        raise InputError("\n".join(faults))


def _show(bundle: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from dexml import manifest, versions
    from dexml.label_log import LabelLog

    root = versions.root_of(bundle)
    now = versions.current(root)[0].name
    table = Table(box=None, pad_edge=False)
    for column in ("version", "labels", "writes since", "MB", "created", "from"):
        table.add_column(column, justify="right" if column in ("labels", "writes since", "MB") else "left")
    for name in versions.names(root):
        found = manifest.read(root / name)
        records = len(LabelLog(versions.log_of(root / name), found.dimension, found.sha256).records)
        size = sum(entry.size for entry in found.files.values()) / 1e6
        made = "an import" if "import" in found.training.config else "a training"
        origin = f"{found.parent.version} after {found.parent.records} writes" if found.parent else made
        mark = f"[bold]{name}[/] (current)" if name == now else name
        table.add_row(mark, f"{found.labels:,}", f"{records:,}", f"{size:,.1f}", found.created[:16].replace("T", " "), origin)
    Console(highlight=False).print(table)


def _tune(bundle: Path, recall: float, texts: Path | None, keep: bool, report: Path | None) -> None:
    """Explore, print every setting, and publish the quickest that reaches the recall where it is to be kept."""
    from rich.console import Console
    from rich.table import Table

    from dexml.errors import InputError
    from dexml.manifest import Row
    from index import tuning
    from index.retriever import Retriever

    if not 0 < recall <= 1:
        raise InputError(f"--recall: above 0 and at most 1, got {recall}")
    retriever = Retriever.open(bundle, writable=keep)
    live = retriever.store.live
    rows = live.index.snapshot(live.labels.live())
    if not len(rows):
        raise InputError(f"bundle: {bundle} has no labels")
    asked = _texts(retriever, texts)
    queries, _ = retriever.model.embed_queries(asked)
    queries = queries[queries.any(dim=1)]  # without those of which the model knows no word
    if not len(queries):
        raise InputError("--queries: the model knows no word of these texts")
    console = Console(stderr=True)
    curves = []
    with console.status("exploring") as status:
        k = min(K, len(rows))
        for curve in tuning.explore(rows, queries, k, tuning.structures(len(rows)), lambda what: status.update(what)):
            curves.append(curve)
    points = [point for curve in curves for point in curve]
    best = tuning.fastest(points, recall)
    table = Table(title=f"{len(rows):,} labels, {len(queries)} queries, 32 at a time: recall@{k} and queries per second")
    for column, side in (("index", "left"), ("recall", "right"), ("per s", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for point in points:
        style = "bold" if point is best else None
        table.add_row(point.words, f"{point.recall:.4f}", f"{point.per_second:,.0f}", style=style)
    Console().print(table)
    click.echo(f"{best.words} finds {best.recall:.2%} at {best.per_second:,.0f} queries per second")
    if report is not None:
        _draw(report, bundle, curves, best, sum(map(len, asked)) / len(asked))
        click.echo(f"report: {report}")
    if keep:
        with retriever.store as store:
            click.echo(f"published as {store.compact(Row(name=best.name, **best.options))}")


def _texts(retriever: Retriever, texts: Path | None) -> list[str]:
    """Return the texts of a file, or training texts of the bundle's data set; of its labels where that is gone."""
    from data import open_format
    from data.lines import read_texts
    from dexml.errors import InputError

    if texts is not None:
        return list(read_texts(texts))
    facts = retriever.bundle.manifest.data
    try:
        found: tuple[str, ...] = open_format(Path(facts.path), facts.format).read("train").texts
    except InputError:
        click.echo("the data set that the bundle was trained on is not there: label texts are asked instead", err=True)
        labels = retriever.labels
        found = tuple(labels.texts[row] for row in labels.live().tolist())
    return list(found[:: max(1, len(found) // QUERIES)][:QUERIES])


def _draw(path: Path, bundle: Path, curves: list[list[Point]], best: Point, length: float) -> None:
    """Write a page with a line for each structure."""
    from training import page, record
    from training.chart import Series, line_chart

    names = [curve[0].options.get("factory", "exact scan") for curve in curves if curve]
    lines = [
        Series(name, sorted((point.recall, point.per_second) for point in curve), marked=True)
        for name, curve in zip(names, [curve for curve in curves if curve], strict=True)
    ]
    title = "Queries per second by recall"
    chart = line_chart(title, f"recall@{K}", lines, logarithmic=True)
    rows = [(point.words, f"{point.recall:.4f}", f"{point.per_second:,.0f}") for curve in curves for point in curve]
    status = f"chosen: {best.words}; queries of {length:.0f} characters on average, 32 at a time"
    content = [page.charts([page.card(title, chart)]), page.numbers(title, ("index", "recall", "queries per second"), rows)]
    record.write_text(path, page.document(f"Index of {bundle}", status, [], content))
