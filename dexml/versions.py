"""A bundle's versions on disk: folders that never change once published, and CURRENT, which names the one that counts.

BUNDLE/CURRENT              "v000002 sha256:…": the version, and the first digits of its manifest's checksum
BUNDLE/v000002/             a version, whole (`dexml.bundle`); files and folders are read-only
BUNDLE/log/v000002.log      labels added and deleted since, with v000002.ack (`dexml.label_log`)
BUNDLE/LOCK                 held by the one process that may write

A version is filled beside its name, flushed, renamed, and only then named by CURRENT: whoever is killed at any moment leaves
the old version or the new one. Needs no torch.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dexml import manifest as manifest_of
from dexml.errors import InputError
from dexml.label_log import LabelLog

CURRENT = "CURRENT"
LOG = "log"
LOCK = "LOCK"
KEPT = 2  # versions: the current one, and the one to go back to
PATIENCE_S = 3.0  # to wait for a writer that is about to end: a service's worker outlives its killed master by a second
DIGITS = 16  # of a manifest's checksum
_NAME = re.compile(r"v\d{6,12}")
_LINE = re.compile(rf"(v\d{{6,12}}) sha256:([0-9a-f]{{{DIGITS}}})\n")


def root_of(path: Path) -> Path:
    """Return the bundle's folder at `path`, or at `path`/bundle for a training run. Raises InputError where there is none."""
    if not path.is_dir():
        raise InputError(f"bundle: the folder {path} does not exist")
    for place in (path, path / "bundle"):
        if (place / CURRENT).exists():
            return place
        if present := names(place):
            raise InputError(f"bundle: {place / CURRENT} is missing; the folder holds {', '.join(present)}")
    if (path / manifest_of.FILE).exists() or (path / "bundle" / manifest_of.FILE).exists():
        raise InputError(f"bundle: {path} was written by an older dexml, or is a version by itself; give its bundle's folder")
    raise InputError(f"bundle: {path} holds no {CURRENT}; `dexml train CONFIG.toml` makes a bundle")


def names(root: Path) -> list[str]:
    """Return the names of all whole versions, oldest first."""
    if not root.is_dir():
        return []
    found = [path.name for path in root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda name: int(name[1:]))


def current(root: Path) -> tuple[Path, manifest_of.Manifest]:
    """Return the folder and manifest of the version that CURRENT names; its other files are not read."""
    pointer = root / CURRENT
    try:
        line = _LINE.fullmatch(pointer.read_text(encoding="ascii"))
    except UnicodeDecodeError:
        line = None
    if line is None:
        raise InputError(f"bundle: {pointer} is damaged; the folder holds {', '.join(names(root)) or 'no version'}")
    name, digits = line.groups()
    if not (root / name).is_dir():
        raise InputError(f"bundle: {pointer} names {name}, which is missing; the folder holds {', '.join(names(root))}")
    manifest = manifest_of.read(root / name)
    if manifest.sha256[:DIGITS] != digits:
        raise InputError(f"bundle: {pointer} is damaged: it is not the checksum of {name}'s manifest that it holds")
    return root / name, manifest


def names_current(root: Path, name: str) -> bool:
    """Return whether CURRENT names that version and can be read."""
    try:
        return current(root)[0].name == name
    except (InputError, FileNotFoundError):
        return False


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the bundle's lock. Raises InputError when another process, or another holder in this one, has it for too long."""
    root.mkdir(parents=True, exist_ok=True)
    handle = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise InputError(f"bundle: {root} is being written by another process") from None
                time.sleep(0.05)
            else:
                break
        yield
    finally:
        os.close(handle)  # releases the lock; the file stays, or two could lock two files of one name


def publish(
    root: Path,
    fill: Callable[[Path], manifest_of.Manifest],
    ready: Callable[[Path, manifest_of.Manifest], None] = lambda folder, manifest: None,
) -> Path:
    """Publish a version, and return its folder; the caller holds the lock.

    `fill` writes everything but the manifest into the empty folder it is given, and returns a manifest without files; `ready`
    is called with the whole version just before CURRENT names it. Raises what these raise, and OSError; the bundle is then as
    it was, but for an empty log.
    """
    _clear(root)
    number = 1 + max((int(name[1:]) for name in names(root)), default=0)
    target = root / f"v{number:06d}"
    scratch = target.with_name(f"{target.name}.tmp")
    try:
        scratch.mkdir(parents=True)
        manifest = fill(scratch)
        manifest = manifest.model_copy(update={"files": manifest_of.seal(scratch)}).sealed()
        manifest.write(scratch / manifest_of.FILE)
        _freeze(scratch)
        os.rename(scratch, target)
        manifest_of.flush(root)
        LabelLog.create(log_of(target), manifest.dimension, manifest.sha256)
        ready(target, manifest)
        point(root, target.name, manifest)
    except BaseException:
        _remove(scratch)
        if not names_current(root, target.name):
            _remove(target)
        raise
    with suppress(OSError):  # it is published; what is left over goes the next time
        prune(root)
    return target


def point(root: Path, name: str, manifest: manifest_of.Manifest) -> None:
    """Let CURRENT name a version, atomically and for good; the caller holds the lock."""
    scratch = root / f"{CURRENT}.tmp"
    try:
        with scratch.open("w", encoding="ascii") as file:
            file.write(f"{name} sha256:{manifest.sha256[:DIGITS]}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, root / CURRENT)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    # Renamed: from here on the version counts, whatever the flush says. Only a power cut could still undo it.
    with suppress(OSError):
        manifest_of.flush(root)


def prune(root: Path, keep: int = KEPT) -> None:
    """Remove all but the current version and the newest of the others; the caller holds the lock."""
    now = current(root)[0].name
    others = [name for name in names(root) if name != now]
    for name in others[: max(0, len(others) - keep + 1)]:
        _remove(root / name)
    kept = names(root)
    for file in (root / LOG).glob("v*"):
        if file.stem not in kept:
            file.unlink(missing_ok=True)


def link(source: str, target: str) -> None:
    """Link a file of one version into another, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def log_of(folder: Path) -> Path:
    """Return where the log of a version's folder is."""
    return folder.parent / LOG / f"{folder.name}.log"


def _clear(root: Path) -> None:
    """Remove what a killed publisher left: folders half filled, and whole versions that CURRENT never named."""
    try:
        newest = int(current(root)[0].name[1:])
    except (InputError, FileNotFoundError):  # damaged, and about to be written anew: every whole version may be of use
        newest = 10**12
    for path in root.glob("v*"):
        unnamed = _NAME.fullmatch(path.name) and int(path.name[1:]) > newest
        if unnamed or path.name.endswith((".tmp", ".deleted")):
            _remove(path)


def _remove(folder: Path) -> None:
    """Remove a version: under another name first, so that no half of it looks whole."""
    if not folder.exists():
        return
    gone = folder if folder.name.endswith((".tmp", ".deleted")) else folder.with_name(f"{folder.name}.deleted")
    if gone != folder:
        os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _freeze(folder: Path) -> None:
    """Flush a folder with all that is in it, and make it read-only: files inside may be mapped into memory."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            path.chmod(0o444)
    for path in [*sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True), folder]:
        manifest_of.flush(path)
