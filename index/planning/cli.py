"""`dexml plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dexml.errors import InputError

if TYPE_CHECKING:
    from index.planning.capacity import Ask, Plan
    from index.planning.machine import Machine

EPILOG = """Examples:

\b
  dexml plan --measure
  dexml plan --labels 1e7 --dim 384 --qps 100 --p99-ms 200
  dexml plan --labels 1e9 --dim 768 --qps 2000 --p99-ms 50 --cores 64 --memory-gib 512 --read-gb-s 300 --network-gbit 100
"""

ABOVE = click.FloatRange(min=0, min_open=True)


@click.command(epilog=EPILOG)
@click.option("--labels", type=click.FloatRange(min=1), metavar="L", help="How many labels, such as 1e9.")
@click.option("--dim", type=click.IntRange(min=1, max=65536), metavar="D", help="Width of their rows.")
@click.option("--qps", type=ABOVE, help="Queries a second.")
@click.option("--p99-ms", type=ABOVE, help="What 99 of 100 queries are answered within.")
@click.option("--k", type=click.IntRange(1, 2048), default=100, show_default=True, help="Answers of each shard.")
@click.option("--encode-ms", type=click.FloatRange(min=0), default=0.2, show_default=True, help="The encoder's time a query.")
@click.option("--network-gbit", type=ABOVE, default=10.0, show_default=True, help="A machine's line.")
@click.option("--rtt-ms", type=click.FloatRange(min=0), default=0.1, show_default=True, help="To another machine and back.")
@click.option("--cores", type=click.IntRange(min=1), help="Imagine a machine of as many cores as these,")
@click.option("--memory-gib", type=ABOVE, help="with this memory,")
@click.option("--read-gb-s", type=ABOVE, help="read at this rate. Default: what the constants' machine has, by its cores.")
@click.option(
    "--machine", type=click.Path(path_type=Path, dir_okay=False), help="The constants' file; default: this machine's."
)
@click.option("--measure", "measures", is_flag=True, help="Measure this machine's constants (minutes, 1 GB) and keep them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    labels: float | None,
    dim: int | None,
    qps: float | None,
    p99_ms: float | None,
    k: int,
    encode_ms: float,
    network_gbit: float,
    rtt_ms: float,
    cores: int | None,
    memory_gib: float | None,
    read_gb_s: float | None,
    machine: Path | None,
    measures: bool,
    as_json: bool,
) -> None:
    """Say how many machines exact search over L labels takes, from constants that were measured on one.

    Labels are spread over shards, a machine each; a front and its shards are a row, and rows share the queries. Printed are the
    shards, their memory, what a batch takes by part with the formula, p50 and p99 of a simulated queue with and without slow
    shards, and what travels. What cannot be is refused, with the part that keeps it. docs/plan.md has the formula.
    """
    if measures:
        _measure(machine)
        return
    if missing := [
        name for name, value in (("labels", labels), ("dim", dim), ("qps", qps), ("p99-ms", p99_ms)) if value is None
    ]:
        raise InputError(f"plan: --{missing[0]} is needed (or --measure)")
    assert labels is not None and dim is not None and qps is not None and p99_ms is not None
    if not max(labels, qps, p99_ms) < float("inf"):
        raise InputError("plan: --labels, --qps and --p99-ms must be finite")
    from index.planning.capacity import Ask
    from index.planning.capacity import plan as make
    from index.planning.machine import read

    used = read(machine).scaled(cores, memory_gib, read_gb_s)
    made = make(Ask(labels, dim, qps, p99_ms, k, encode_ms, network_gbit, rtt_ms), used)
    if as_json:
        click.echo(json.dumps(made.as_json(), indent=1))
    else:
        click.echo("\n".join(f"{name:<11}{text}" for name, text in _told(made)))


def _measure(machine: Path | None) -> None:
    import os

    from rich.console import Console

    from index.planning.machine import measured
    from index.planning.measure import measure

    path = machine or measured()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in a service, whose shards would spin on each other's cores
    with Console(stderr=True).status("measuring") as status:
        found = measure(lambda what: status.update(f"measuring: {what}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        scratch.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        raise InputError(f"--machine: {path} cannot be written: {error.strerror or error}") from None
    click.echo(f"{path}: {_described(found)}")
    for batch, ns, ms in zip(found.batches, found.all_scan_ns, found.all_call_ms, strict=True):
        click.echo(f"  batch {batch:>2}: {ns:.4f} ns a number + {ms:.3g} ms")


def _described(machine: Machine) -> str:
    return f"{machine.about}; {machine.cores} cores, {machine.memory_gib:g} GiB, reads {machine.read_gb_s:.3g} GB/s"


def _told(made: Plan) -> list[tuple[str, str]]:
    """Return the lines of a plan, each with its heading."""
    from index.planning.capacity import FACTOR, FILL, LABEL_BYTES, NUMBER_BYTES, SLOW, bandwidth_bound_ms

    ask, machine, facts = made.ask, made.machine, made.as_json()
    size = made.simulated.batch
    gib = facts["gib_a_machine"]

    def latency(name: str) -> str:
        found = facts["latency_ms"][name]
        return f"p50 {found['p50']:.3g} ms, p99 {found['p99']:.3g} ms"

    lines = [
        ("machine", _described(machine)),
        ("asked", _asked(ask)),
        (
            "plan",
            f"{made.shards:,} shards × {made.rows} rows = {facts['machines']:,} machines (memory alone: {made.least:,} a row)",
        ),
        ("memory", f"{gib:.1f} GiB a machine of {machine.memory_gib:g}; {ask.bytes / 2**30:,.0f} GiB a row"),
        ("", f"= ⌈L/S⌉ · ({NUMBER_BYTES}·D + {LABEL_BYTES} bytes), at most {FILL:.0%} of a machine"),
        ("reading", f"{bandwidth_bound_ms(ask, machine, made.shards, 1):.3g} ms to read a shard's int8 copy at full bandwidth"),
        ("", f"scanning it for one query is expected to take {made.batch(1).scan:.3g} ms"),
        (
            "formula",
            "t(B) = B·encode + (hop + S·message + bytes out) + (n·D·scan_ns[B] + call_ms[B]) + (bytes in + S·B·k·merge_ns)",
        ),
        ("one query", f"{made.batch(1).total:.3g} ms = {made.batch(1)}"),
        ("a batch", f"of {size:.1f}, the mean here: {made.batch(size).total:.3g} ms = {made.batch(size)}"),
        ("simulated", f"{latency('as measured')}; fronts are busy {made.simulated.busy:.0%} of the time"),
        ("", f"{SLOW:.1%} of a shard's answers {FACTOR:g}× as slow: {latency('stragglers')}"),
    ]
    if made.hedged is not None:
        lines.append(("", f"and late shards asked again in another row: {latency('stragglers, hedged')}"))
    out, back = facts["scatter_gbit_s_a_front"], facts["merge_gbit_s_a_front"]
    lines.append(
        ("traffic", f"{facts['merge_mb_a_batch']:.3g} MB a batch to merge; a front gets {back:.3g} and sends {out:.3g} Gbit/s")
    )
    return lines


def _asked(ask: Ask) -> str:
    return f"{ask.labels:g} labels of {ask.dim}, {ask.qps:g} queries a second, p99 within {ask.p99_ms:g} ms, best {ask.k} exact"
