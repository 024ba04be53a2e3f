"""`dexml index`: the versions of a bundle."""

from __future__ import annotations

from pathlib import Path

import click

EPILOG = """Examples:

\b
  dexml index runs/mine                       what is there
  dexml index runs/mine --verify              every checksum of every version
  dexml index runs/mine --compact             the labels as they are now become the next version
  dexml index runs/mine --activate v000001    go back to a version, as it was published
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--verify", "action", flag_value="verify", help="Read every file of every version and compare its checksums.")
@click.option("--compact", "action", flag_value="compact", help="Publish the labels as they are now as the next version.")
@click.option("--activate", "name", metavar="VERSION", help="Publish a kept version anew; writes that came later do not count.")
def index(bundle: Path, action: str | None, name: str | None) -> None:
    """List the versions of BUNDLE, the writes in their logs and their size; or change which one counts."""
    from index.store import Store, activate

    if action and name:
        raise click.UsageError(f"--{action} and --activate are two things to do, one after the other")
    if name:
        click.echo(f"{name} is published anew as {activate(bundle, name)}")
    elif action == "compact":
        with Store.open(bundle, writable=True) as store:
            before = store.name
            click.echo(f"{before} is published as {store.compact()}: {len(store.live.labels):,} labels")
    elif action == "verify":
        _verify(bundle)
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
