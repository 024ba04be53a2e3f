"""Sparse matrices in scipy's npz files, opened so that nothing is unpickled and every fault is told."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data.lines import excerpt
from dexml.errors import InputError

# What numpy, scipy and zipfile raise on damaged bytes; RuntimeError is an encrypted member.
_FAULTS = (
    *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError, MemoryError, RuntimeError),
    *(OverflowError, zipfile.BadZipFile, zlib.error),
)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Give the file for `scipy.sparse.load_npz`, which unpickles nothing: an object array is refused.

    Raises InputError for whatever the block raises on damaged bytes. Opened here, since numpy forgets to close a file that it
    opened itself and cannot read.
    """
    if not path.is_file():
        raise InputError(f"{path}: the file does not exist")
    try:
        with path.open("rb") as stream:
            yield stream
    except InputError:
        raise
    except _FAULTS as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a scipy sparse matrix in npz ({excerpt(reason, 120)})") from None


__all__ = ["opened"]
