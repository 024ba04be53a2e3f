"""The options --engine, --workers and --address of every command that can run on Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dexml.errors import InputError
from training.engines import ENGINES, Engine


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the three options."""
    for option in (
        click.option(
            "--ray-address",
            "address",
            metavar="HOST:PORT",
            help="With --engine ray: a cluster that runs; default: Ray, started here.",
        ),
        click.option("--workers", type=click.IntRange(min=1), help="With --engine ray: processes; default: one a processor."),
        click.option("--engine", default="local", show_default=True, metavar="NAME", help=f"Who works: {', '.join(ENGINES)}."),
    ):
        command = option(command)
    return command


def options_of(engine: str, workers: int | None, address: str | None) -> dict[str, Any]:
    """Return the options of an engine. Raises InputError for one that it does not have, or an engine nobody knows."""
    ENGINES[engine]  # an unknown one is told with those that there are
    given = {name: value for name, value in (("workers", workers), ("address", address)) if value is not None}
    if engine != "ray" and given:
        raise InputError(f"--{next(iter(given)).replace('address', 'ray-address')} goes with --engine ray")
    return given


def engine_of(engine: str, workers: int | None, address: str | None) -> Engine:
    """Return the engine that the options name."""
    return ENGINES.build(engine, options_of(engine, workers, address))
