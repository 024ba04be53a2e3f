"""Who may do what: keys with roles, of which the service's file holds checksums alone.

A key is 256 random bits, so that a plain SHA-256 of it cannot be turned back; passwords would need more. The file is read again
when it changes: a key is taken away, or replaced, without a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dexml.errors import InputError

log = logging.getLogger("dexml.serve")

Role = Literal["read", "write", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may do what those before it may
LOOK_AGAIN_S = 1.0

# What each route asks for, by its name rather than by a prefix of its path. A route that is not here is for administrators.
OPEN = frozenset(
    {"probes.livez", "probes.v2_live", "probes.readyz", "probes.health", "probes.v2_ready", "v1.openapi", "v1.page", "static"}
    | {"docs.page", "docs.asset"}
)
NEEDED: Mapping[str, Role] = {
    "v1.search": "read",
    "v1.info": "read",
    "compat.embeddings": "read",
    "compat.rerank": "read",
    "compat.rerank_v2": "read",
    "compat.models": "read",
    "compat.model": "read",
    "probes.metrics": "read",  # the admin listener asks for none
    "labels.list_labels": "read",
    "labels.get_label": "read",
    "labels.upsert": "write",
    "labels.delete_many": "write",
    "labels.delete_one": "write",
    "indexes.list_versions": "read",
    "indexes.activate": "admin",
    "indexes.snapshots": "read",
    "indexes.snapshot": "admin",
}


class Key(BaseModel):
    """A key by its name and the SHA-256 of its text, in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    role: Role
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: str


class KeyFile(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Key, ...]

    @model_validator(mode="after")
    def _once(self) -> KeyFile:
        if len({key.name for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have one name")
        return self


def read(path: Path) -> KeyFile:
    """Return the keys of a file. Raises InputError that names the file and the field."""
    try:
        return KeyFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"keys: {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"keys: {path}{f', {place}' if place else ''}: {first['msg']}") from None


def write(path: Path, keys: KeyFile) -> None:
    """Write the file whole, for its owner's eyes. Raises InputError when that cannot be."""
    scratch = path.with_name(f"{path.name}.tmp")
    try:
        handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(keys.model_dump(mode="json"), indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise InputError(f"keys: {path} cannot be written: {error.strerror}") from None


def add(path: Path, name: str, role: Role) -> str:
    """Add a key to the file, made if it is not there, and return the key's text, which is kept nowhere."""
    keys = read(path).keys if path.exists() else ()
    if any(key.name == name for key in keys):
        raise InputError(f"keys: {path} has a key {name!r}; remove it first, or give another name")
    text = f"dexml_{secrets.token_urlsafe(32)}"
    try:
        key = Key(name=name, role=role, sha256=digest(text), created=datetime.now(UTC).isoformat(timespec="seconds"))
    except ValidationError:
        raise InputError(f"keys: a name has 1 to 64 letters, digits, dots, dashes and underscores, got {name!r}") from None
    write(path, KeyFile(keys=(*keys, key)))
    return text


def remove(path: Path, name: str) -> None:
    """Take a key away. Raises InputError where there is none of that name."""
    keys = read(path).keys
    if all(key.name != name for key in keys):
        raise InputError(f"keys: {path} has no key {name!r}; it has {', '.join(key.name for key in keys) or 'none'}")
    write(path, KeyFile(keys=tuple(key for key in keys if key.name != name)))


def digest(text: str) -> str:
    """Return the SHA-256 of a key's text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class Keys:
    """The keys of a running service."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys = read(path).keys
        self._lock = threading.Lock()
        self._state = _state(path)
        self._looked = time.monotonic()

    def find(self, text: str) -> Key | None:
        """Return the key whose text was presented; all are compared, so that time tells nothing."""
        self._look_again()
        presented, found = digest(text), None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, presented):
                found = key
        return found

    def _look_again(self) -> None:
        with self._lock:
            if time.monotonic() < self._looked + LOOK_AGAIN_S:
                return
            self._looked = time.monotonic()
            if (state := _state(self._path)) == self._state:
                return
            self._state = state
            try:
                self._keys = read(self._path).keys
                log.warning("keys: read anew, there are %d", len(self._keys))
            except InputError as error:  # half edited, perhaps: the ones before hold until it can be read
                log.error("%s; the keys from before still hold", error)


def allows(role: Role, needed: Role) -> bool:
    """Return whether `role` may do what `needed` may."""
    return ROLES.index(role) >= ROLES.index(needed)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


__all__ = ["NEEDED", "OPEN", "Key", "KeyFile", "Keys", "Role", "add", "allows", "read", "remove", "write"]
