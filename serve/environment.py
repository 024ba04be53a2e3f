"""The service under a gunicorn of one's own: `gunicorn -c deploy/gunicorn.conf.py`, with its settings from the environment.

`DEXML_NAME` is the setting NAME of `serve.settings`: DEXML_BUNDLE, DEXML_PORT, DEXML_KEYS, …; lists are separated by commas.
DEXML_INSECURE=1 is `--insecure`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dexml.errors import InputError
from serve import logs, policy, wsgi
from serve.hosts import shown
from serve.settings import Settings

PREFIX = "DEXML_"


def settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings named in the environment. Raises InputError for a name or a value that is none, and as `policy`."""
    given: dict[str, Any] = {
        name.removeprefix(PREFIX).lower(): value for name, value in environ.items() if name.startswith(PREFIX) and value
    }
    try:
        insecure = TypeAdapter(bool).validate_python(given.pop("insecure", False))
        if "allowed_hosts" in given:
            given["allowed_hosts"] = given["allowed_hosts"].split(",")
        found = Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"][:1]) or "insecure"
        words = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise InputError(f"{PREFIX}{name.upper()}: {words}") from None
    if found.bundle is None:
        raise InputError(f"{PREFIX}BUNDLE must name a bundle")
    policy.check(found, insecure=insecure)
    return found


def options() -> dict[str, Any]:
    """Return what the configuration file of gunicorn sets, the address and the application among it."""
    made = settings()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")  # a server fetches nothing
    logs.configure(made.log_format, made.log_level)
    if made.admin_port is not None:
        _admin(made)  # before the fork: a worker that takes another's place finds it open
    host = f"[{made.host}]" if ":" in made.host else made.host
    return {
        **wsgi.options(made),
        "wsgi_app": "serve.environment:app()",
        "bind": f"{host}:{made.port}",
        "preload_app": False,  # threads, and what CUDA holds, do not survive a fork
        "on_starting": _check_alone,
    }


def app() -> Any:
    """Return the WSGI application; called by gunicorn in the worker process."""
    made = settings()
    admin = None if made.admin_port is None else _admin(made)
    return wsgi.begin(made, f"http://{shown(made.host)}:{made.port}/", admin=admin)


@cache
def _admin(of: Settings) -> socket.socket:
    return wsgi.listen_admin(of)


def _check_alone(arbiter: Any) -> None:
    """Stop where a command line asked for what cannot work: each worker would own a model, and numbers, of its own."""
    if arbiter.cfg.workers != 1 or not issubclass(arbiter.cfg.worker_class, wsgi.Drainer):
        raise SystemExit("dexml: one worker of its own kind, please: leave out -w and -k (deploy/README.md says why)")


__all__ = ["app", "options", "settings"]
