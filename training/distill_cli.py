"""`dexml distill`."""

from __future__ import annotations

from pathlib import Path

import click

EPILOG = """Examples:

\b
  dexml distill training/configs/distill.toml --set distill.teacher=RUN --set data.path=MY_DATA --set out=runs/small
  dexml distill training/configs/quantize.toml --set distill.teacher=RUN --set data.path=MY_DATA --set out=runs/four_bits
"""


@click.command(epilog=EPILOG)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one setting: section.key=value.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of this run.")
@click.option("--if-needed", is_flag=True, help="Do nothing when `out` already holds what this call would make.")
def distill(config: Path, settings: tuple[str, ...], resume: bool, if_needed: bool) -> None:
    """Train a small or quantized student of a bundle as CONFIG (TOML) says; leaves a bundle in its `out` folder.

    The student answers as the teacher does, on shortlists of its best labels, beside the loss of the labels themselves. What
    comes out is measured, searched and served as any bundle.
    """
    from functools import partial

    from dexml.config import load
    from training.cli import train_as
    from training.distill import DistillConfig, DistilledRun, resolve

    read = load(DistillConfig, config, settings)
    chosen, teacher = resolve(read)
    if chosen.validation.fraction == 0 and read.validation.fraction > 0:
        click.echo("no rows are watched: the teacher has seen them all (it held none out, or others)", err=True)
    train_as(chosen, resume, if_needed, partial(DistilledRun, teacher=teacher))
