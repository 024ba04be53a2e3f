"""Which names in a `Host` header are ours: a foreign one is a page that has its own name resolve to this machine.

Against such DNS rebinding no same-origin rule helps: to the browser, page and service are one origin. The name gives it away.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_.])?)(:[0-9]{1,5})?", re.IGNORECASE | re.ASCII)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`: localhost, 127.0.0.0/8 or ::1, with or without brackets."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def name_of(host: str) -> str | None:
    """Return the name in a Host header, small, without port and final dot, or None for what is no host.

    >>> name_of("LocalHost:8080"), name_of("[::1]:80"), name_of("one.example, two.example")
    ('localhost', '[::1]', None)
    """
    found = _HOST.fullmatch(host)
    return found[1].lower().removesuffix(".") if found else None


def is_allowed(host: str, bound: str, allowed: Collection[str]) -> bool:
    """Return whether a service bound to `bound` answers to the header `host`.

    Names of this machine and those of `allowed` (as `name_of` gives them) always; every other name only where the service
    is bound to other than loopback addresses and `allowed` is empty. Any port will do: a proxy or a tunnel has its own.
    """
    if not allowed and not is_loopback(bound):
        return True
    name = name_of(host)
    return name is not None and (name in allowed or is_loopback(name))


def check_allowed(host: str) -> str:
    """Return a name of `allowed_hosts` as `name_of` would. Raises ValueError for a port, a path or a pattern."""
    found = _HOST.fullmatch(host)
    if found is None or found[2] is not None:
        raise ValueError(f"{host!r} is no host name: a name or an address without port and path is needed")
    return found[1].lower().removesuffix(".")


def shown(host: str) -> str:
    """Return an address from the command line as one line of an error message can hold it."""
    return host if host.isprintable() and len(host) <= 64 else f"{host[:64]!r}{'…' if len(host) > 64 else ''}"


__all__ = ["check_allowed", "is_allowed", "is_loopback", "name_of", "shown"]
