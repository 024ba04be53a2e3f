"""A write: texts encoded, and everything stored at once."""

from __future__ import annotations

from dexml.label_log import Change
from index.store import Moved, Store, Written
from index.version import Version
from serve.errors import Fault, Problem
from serve.tickets import Edit

UNKNOWN = "holds no word that the model knows; give an embedding"


def write(store: Store, edit: Edit) -> Written:
    """Return the acknowledged write of `edit`. Raises Problem for a text that the model cannot read, and as the store does."""
    while True:
        version = store.version
        if edit.check is not None:
            edit.check(store)
        try:
            return store.write(_changes(version, edit), made_by=version)
        except Moved:  # another model was activated while this one encoded
            continue


def _changes(version: Version, edit: Edit) -> list[Change]:
    texts = [text for _, text, row in edit.put if row is None and text is not None]
    rows = version.model.embed_labels(texts).numpy() if texts else ()
    for text, made in zip(texts, rows, strict=True):
        if not made.any():
            place = next(number for number, (_, own, row) in enumerate(edit.put) if row is None and own == text)
            raise Problem("schema", faults=[Fault(f"/labels/{place}/text", "schema", UNKNOWN)])
    encoded = iter(rows)
    put = [Change(name, text or name, next(encoded) if row is None else row) for name, text, row in edit.put]
    return [*put, *(Change(name) for name in edit.deleted)]


__all__ = ["write"]
