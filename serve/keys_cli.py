"""`dexml keys add|list|remove FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

FILE = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


@click.group()
def command() -> None:
    """Make and take away the keys of `dexml serve --keys FILE`; a running service sees the change within a second or two."""


@command.command()
@FILE
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["read", "write", "admin"]),
    default="read",
    show_default=True,
    help="read: search and look at labels; write: change labels too; admin: change versions too.",
)
def add(file: Path, name: str, role: str) -> None:
    """Add a key called NAME to FILE, and print it: FILE holds its checksum alone, so that this is the only time."""
    from serve import keys

    click.echo(keys.add(file, name, cast("keys.Role", role)))


@command.command(name="list")
@FILE
def list_keys(file: Path) -> None:
    """List the names, roles and ages of the keys in FILE."""
    from serve import keys

    for key in keys.read(file).keys:
        click.echo(f"{key.name}\t{key.role}\t{key.created}")


@command.command()
@FILE
@click.argument("name")
def remove(file: Path, name: str) -> None:
    """Take the key called NAME out of FILE: whoever has it is refused from then on."""
    from serve import keys

    keys.remove(file, name)
