"""What a service must not be started with, whoever starts it: `dexml serve`, or gunicorn with `deploy/gunicorn.conf.py`."""

from __future__ import annotations

from dexml import versions
from dexml.errors import InputError
from serve import sharding
from serve.hosts import is_loopback, shown
from serve.keys import read
from serve.settings import Settings


def check(settings: Settings, *, insecure: bool = False) -> None:
    """Raise InputError, in the words of the options of `dexml serve`, unless the service may be started with `settings`."""
    if not __debug__:
        raise InputError("serve: run python without -O; it removes checks that FAISS relies on")
    host, keys = settings.host, settings.keys
    if keys is None and not insecure and not is_loopback(host):
        raise InputError(f"--host {shown(host)}: everybody who reaches it could ask; give --keys FILE, or --insecure")
    if keys is None and settings.writable and not is_loopback(host):
        raise InputError(f"--writable: everybody who reaches {shown(host)} could write; give --keys FILE")
    if keys is None and settings.anonymous_read:
        raise InputError("--anonymous-read: without --keys FILE nobody is asked for a key")
    if keys is not None and not read(keys).keys:
        raise InputError(f"--keys {keys}: the file holds no key; `dexml keys add {keys} NAME` makes one")
    sharding.check(settings)
    assert settings.bundle is not None
    if settings.otel is not None:
        from serve import tracing

        tracing.check(settings.otel)
    versions.current(versions.root_of(settings.bundle))  # before an address is taken; the worker opens it after the fork


__all__ = ["check"]
