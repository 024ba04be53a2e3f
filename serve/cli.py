"""`dexml serve BUNDLE`."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import click


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option("--threads", type=click.IntRange(1, 4096), help="Request threads; default: max-inflight + 32.")
@click.option("--max-inflight", default=256, show_default=True, type=click.IntRange(1), help="More at once get 429.")
@click.option("--deadline-ms", default=2000, show_default=True, type=click.IntRange(1, 30_000), help="Later gets 504.")
@click.option("--insecure", is_flag=True, help="Listen on other than loopback addresses without any keys.")
def command(
    bundle: Path, host: str, port: int, threads: int | None, max_inflight: int, deadline_ms: int, insecure: bool
) -> None:
    """Serve BUNDLE over HTTP: POST /v1/search, a search page at /, the API's description at /openapi.json.

    Try it:  curl http://127.0.0.1:8080/v1/search -H 'Content-Type: application/json' -d '{"queries": ["sort an array"]}'
    """
    from dexml.errors import InputError
    from dexml.manifest import verify

    if not __debug__:
        raise InputError("serve: run python without -O; it removes checks that FAISS relies on")
    if not insecure and not is_loopback(host):
        raise InputError(
            f"--host {host}: everybody who reaches it could ask, and there are no keys yet; "
            "use 127.0.0.1 behind a proxy, or --insecure"
        )
    verify(bundle)  # before an address is taken; the worker opens the bundle after the fork
    from serve import wsgi
    from serve.settings import Settings

    settings = Settings(
        bundle=bundle, host=host, port=port, threads=threads, max_inflight=max_inflight, deadline_ms=deadline_ms
    )
    sys.exit(wsgi.run(settings, wsgi.listen(settings)))


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
