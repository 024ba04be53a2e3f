"""Files of data sets: formats by name, and the one that a folder's content tells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dexml.errors import InputError
from dexml.table import Table

if TYPE_CHECKING:
    from data.format import Format

FORMATS: Table[Format] = Table(
    "format",
    {
        "xmc_text": "data.xmc_text:XmcText",
        "jsonl": "data.jsonl:JsonLines",
    },
)


def open_format(root: Path, name: str = "auto") -> Format:
    """Return the format `name` over the folder `root`; "auto" takes the first whose files are there."""
    if not root.is_dir():
        raise InputError(f"data: the folder {root} does not exist")
    if name != "auto":
        return FORMATS.build(name, {}, root)
    for known in FORMATS:
        if FORMATS[known].found(root):
            return FORMATS.build(known, {}, root)
    raise InputError(f"data: {root} holds no data set of a known format ({', '.join(FORMATS)})")


__all__ = ["FORMATS", "open_format"]
