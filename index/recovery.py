"""What is still there of a bundle whose current version is damaged: the version it came from, and the logs of both."""

from __future__ import annotations

from pathlib import Path

from dexml import manifest as manifest_of
from dexml import versions
from dexml.errors import InputError
from dexml.label_log import Change, LabelLog
from dexml.memory import FOLDER, POSITIVES
from index.store import published_with


def recover(path: Path) -> str:
    """Publish the labels as they are now from the current version's parent and the two logs; return the new version's name.

    A compaction's labels are those of its parent after so many writes, so nothing is lost. Raises InputError where nothing is
    damaged, and where these are damaged as well: what can be gone back to then is said.
    """
    root = versions.root_of(path)
    with versions.locked(root):
        folder, manifest = versions.current(root)  # where CURRENT itself is damaged, --activate names a version anew
        name = folder.name
        try:
            manifest_of.verify(root / name, manifest)
        except InputError as error:
            damage = str(error)
        else:
            raise InputError(f"bundle: nothing in {root / name} is damaged")
        if manifest.parent is None:
            raise InputError(f"{damage}; it came from a training, and what is left to go back to is {_others(root, name)}")
        parent, records = manifest.parent.version, manifest.parent.records
        if not (root / parent).is_dir():
            raise InputError(f"{damage}; {parent}, which it came from, is gone")
        older = manifest_of.read(root / parent)
        for what in ("encoder", "memory"):
            if _files(older, what) != _files(manifest, what):
                raise InputError(f"{damage}; its {what} is not that of {parent}: go back to it by --activate {parent}")
        before = LabelLog(versions.log_of(root / parent), older.dimension, older.sha256).records[:records]
        since = LabelLog(versions.log_of(root / name), manifest.dimension, manifest.sha256).records
        if len(before) < records:
            raise InputError(f"{damage}; the log of {parent} holds {len(before)} of the {records} writes that led to it")
        changes: list[Change] = [change for record in [*before, *since] for change in record.changes]
        return published_with(root, root / parent, older, changes, manifest.index)


def _files(manifest: manifest_of.Manifest, room: str) -> dict[str, manifest_of.Entry]:
    """Return the files of a room that are passed on from version to version as they are."""
    return {
        name: entry for name, entry in manifest.files.items() if name.startswith(f"{room}/") and name != f"{FOLDER}/{POSITIVES}"
    }


def _others(root: Path, name: str) -> str:
    return ", ".join(other for other in versions.names(root) if other != name) or "nothing"
