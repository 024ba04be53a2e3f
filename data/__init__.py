"""Files of data sets: formats by name, and the one that a folder's content tells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dexml.errors import InputError
from dexml.table import Table

if TYPE_CHECKING:
    from data.format import Format
    from data.lines import Tell

FORMATS: Table[Format] = Table(
    "format",
    {
        "xmc_text": "data.xmc_text:XmcText",
        "jsonl": "data.jsonl:JsonLines",
        "csv": "data.csv_table:CsvTable",
        "parquet": "data.parquet_table:ParquetTable",
        "xc_json": "data.xc_json:XcJson",
        "xc_sparse": "data.xc_sparse:XcSparse",
        "xc_single": "data.xc_single:XcSingle",
        "pecos": "data.pecos:Pecos",
        "libmultilabel": "data.libmultilabel:LibMultiLabel",
        "attentionxml": "data.attentionxml:AttentionXml",
    },
)


def open_format(root: Path, name: str = "auto", tell: Tell | None = None) -> Format:
    """Return the format `name` over the folder `root`; "auto" takes the one whose files are there.

    `tell` hears how far a file is while it is read. Raises InputError where the files of no format are there, or of two.
    """
    if not root.is_dir():
        raise InputError(f"data: the folder {root} does not exist")
    return FORMATS.build(tell_format(root) if name == "auto" else name, {}, root, tell)


def tell_format(root: Path) -> str:
    """Return the name of the one format whose files are in the folder `root`."""
    found = [name for name in FORMATS if FORMATS[name].found(root)]
    if not found:
        raise InputError(f"data: {root} holds no data set of a known format ({', '.join(FORMATS)})")
    if len(found) > 1:
        raise InputError(f"data: {root} holds the files of {' and '.join(found)}; say which format is meant")
    return found[0]


__all__ = ["FORMATS", "open_format", "tell_format"]
