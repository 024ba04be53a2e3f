"""`dexml serve BUNDLE`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

import click

from serve.hosts import check_allowed

ADMIN_PORT = 9090
ENGINE = "ray: spread the labels over shards, processes on one machine or many (extra `ray`, docs/sharding.md)."
WATCHDOG = "At one batch for longer, the process counts as stuck and starts anew."


def host_names(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of --allow-host, checked."""
    try:
        return tuple(check_allowed(value) for value in values)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option("--threads", type=click.IntRange(1, 4096), help="Request threads; default: max-inflight + 32.")
@click.option("--max-inflight", default=256, show_default=True, type=click.IntRange(1), help="More at once get 429.")
@click.option("--deadline-ms", default=2000, show_default=True, type=click.IntRange(1, 30_000), help="Later gets 504.")
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    callback=host_names,
    help="Answer requests for this host too, such as a proxy's public name; repeatable. On loopback addresses, requests "
    "for other hosts than localhost, 127.0.0.0/8 and [::1] get 421.",
)
@click.option(
    "--writable",
    is_flag=True,
    help="Take labels to add, replace and delete (POST, DELETE /v1/labels); without --keys on loopback only.",
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Ask for keys, those of FILE (`dexml keys add`): needed on other than loopback addresses.",
)
@click.option("--anonymous-read", is_flag=True, help="With --keys: searching needs none; changing labels and versions does.")
@click.option("--admin-host", default="127.0.0.1", show_default=True, help="The address of probes and metrics; asks no key.")
@click.option(
    "--admin-port",
    type=click.IntRange(0, 65535),
    show_default=str(ADMIN_PORT),
    help="The port of /livez, /readyz and /metrics, on threads of their own; 0 picks a free one.",
)
@click.option("--no-admin", is_flag=True, help="Answer probes and /metrics on the public port alone.")
@click.option("--watchdog-s", default=30.0, show_default=True, type=click.FloatRange(0, min_open=True), help=WATCHDOG)
@click.option("--log-format", default="text", show_default=True, type=click.Choice(["text", "json"]))
@click.option(
    "--log-level",
    default="warning",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="info: a line for each request, without its texts; debug: for probes too.",
)
@click.option("--otel", metavar="URL", help="Send traces to this OpenTelemetry endpoint (OTLP over HTTP, extra `otel`).")
@click.option("--engine", default="local", show_default=True, type=click.Choice(["local", "ray"]), help=ENGINE)
@click.option("--shards", default=1, show_default=True, type=click.IntRange(1, 1024), help="Into how many, with --engine ray.")
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(1, 8), help="Copies of each shard.")
@click.option(
    "--shard-cpus", default=1.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Of each copy of a shard."
)
@click.option(
    "--shard-gpus", default=0.0, show_default=True, type=click.FloatRange(0), help="Of each copy: for indexes of FAISS."
)
@click.option("--ray-address", metavar="HOST:PORT", help="Join this Ray cluster, rather than start one on this machine.")
@click.option("--insecure", is_flag=True, help="Listen on other than loopback addresses without any keys.")
def command(
    bundle: Path,
    host: str,
    port: int,
    threads: int | None,
    max_inflight: int,
    deadline_ms: int,
    allowed_hosts: tuple[str, ...],
    writable: bool,
    keys: Path | None,
    anonymous_read: bool,
    admin_host: str,
    admin_port: int | None,
    no_admin: bool,
    watchdog_s: float,
    log_format: Literal["text", "json"],
    log_level: Literal["debug", "info", "warning", "error"],
    otel: str | None,
    engine: Literal["local", "ray"],
    shards: int,
    replicas: int,
    shard_cpus: float,
    shard_gpus: float,
    ray_address: str | None,
    insecure: bool,
) -> None:
    """Serve BUNDLE over HTTP: POST /v1/search, a search page at /, the API's description at /openapi.json.

    Try it:  curl http://127.0.0.1:8080/v1/search -H 'Content-Type: application/json' -d '{"queries": ["sort an array"]}'
    """
    # Read when OpenMP is loaded: threads of a parallel loop that has ended would keep a core that requests need.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from dexml.errors import InputError
    from serve import policy, wsgi
    from serve.settings import Settings

    settings = Settings(
        bundle=bundle,
        host=host,
        port=port,
        allowed_hosts=allowed_hosts,
        writable=writable,
        keys=keys,
        anonymous_read=anonymous_read,
        threads=threads,
        max_inflight=max_inflight,
        deadline_ms=deadline_ms,
        admin_host=admin_host,
        admin_port=None if no_admin else ADMIN_PORT if admin_port is None else admin_port,
        watchdog_s=watchdog_s,
        log_format=log_format,
        log_level=log_level,
        otel=otel,
        engine=engine,
        shards=shards,
        replicas=replicas,
        shard_cpus=shard_cpus,
        shard_gpus=shard_gpus,
        ray_address=ray_address,
    )
    policy.check(settings, insecure=insecure)
    listener = wsgi.listen(settings)
    admin = None
    try:
        admin = None if no_admin else wsgi.listen_admin(settings)
    except InputError as error:
        if admin_port is not None:
            raise InputError(f"--admin-port: {error}") from None
        click.echo(f"dexml: {error}; probes and metrics on the public port alone (--admin-port N picks another)", err=True)
    sys.exit(wsgi.run(settings, listener, admin=admin))
