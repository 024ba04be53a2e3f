"""Whether this request may pass: asked before any route runs and before a byte of the body is read."""

from __future__ import annotations

from flask import current_app, g, request

from serve.errors import Problem
from serve.keys import NEEDED, OPEN, Keys, allows

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="dexml"'}


def check(keys: Keys | None, *, anonymous_read: bool) -> None:
    """Raise Problem, unauthenticated or forbidden, unless the route asks for no key or the key presented has its role."""
    endpoint = request.endpoint
    if keys is None or endpoint is None or endpoint in OPEN:  # no route: 404 and 405 tell nothing
        return
    needed = NEEDED.get(endpoint, "admin")
    text = _presented()
    if text is None:
        if needed == "read" and anonymous_read:
            return
        raise Problem("unauthenticated", "give a key: Authorization: Bearer KEY, or X-API-Key: KEY", headers=CHALLENGE)
    key = keys.find(text)
    if key is None:
        challenge = {"WWW-Authenticate": f'{CHALLENGE["WWW-Authenticate"]}, error="invalid_token"'}
        raise Problem("unauthenticated", "the key is not one of this service", headers=challenge)
    g.key_name = key.name
    if not allows(key.role, needed):
        raise Problem("forbidden", f"the key's role is {key.role}; this needs {needed}")


def unlisted() -> list[str]:
    """Return the routes of the application that no table of roles names: there should be none."""
    named = OPEN | set(NEEDED)
    return sorted({rule.endpoint for rule in current_app.url_map.iter_rules()} - named)


def _presented() -> str | None:
    scheme, _, text = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and text.strip():
        return text.strip()
    return request.headers.get("X-API-Key") or None


__all__ = ["check", "unlisted"]
