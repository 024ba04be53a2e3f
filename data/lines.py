"""Text files as users hold them: strict UTF-8, rows that end at a line feed alone, writes that appear whole or not."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dexml.errors import InputError
from dexml.text import TextFault, id_fault, text_fault

Tell = Callable[[Path, float], None]
"""Is told, while a file is read, which one it is and the share of it that is done."""

_BOM = b"\xef\xbb\xbf"
_TELL_LINES = 4096  # between two words about how far a file is


def excerpt(value: object, width: int = 60) -> str:
    """Return `value` as Python writes it, on one line, cut to `width` characters for an error message."""
    shown = repr(value)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


def read_lines(path: Path, tell: Tell | None = None) -> Iterator[str]:
    r"""Yield the lines of `path` (gzip when it ends in .gz), each without its "\n" or "\r\n".

    Only "\n" ends a line: `str.splitlines` also breaks at \x0b, \x85 and U+2028, which occur inside real texts, and
    every row after such a break would carry its neighbour's labels. A byte order mark at the start is dropped.
    Raises InputError for a file that is missing, unreadable or not UTF-8 (line, and byte offset from the file's start).
    """
    for line in raw_lines(path, tell):
        yield line.removesuffix("\n").removesuffix("\r")


def raw_lines(path: Path, tell: Tell | None = None) -> Iterator[str]:
    """Yield what `read_lines` does, each line with its ending, which a quoted field of CSV may hold."""
    offset = 0
    try:
        with path.open("rb") as file:
            size = max(1, os.fstat(file.fileno()).st_size)
            stream: Iterable[bytes] = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            for number, raw in enumerate(stream, 1):
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    byte, place = raw[error.start], offset + error.start
                    raise InputError(f"{path}, line {number}: byte {byte:#04x} at offset {place} is not UTF-8") from None
                if number == 1 and raw.startswith(_BOM):
                    line = line[1:]
                offset += len(raw)
                if tell is not None and number % _TELL_LINES == 0:
                    tell(path, file.tell() / size)  # of the bytes on the disk, which gzip's own count is not
                yield line
    except FileNotFoundError:
        raise InputError(f"{path}: the file does not exist") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: the gzip stream is damaged ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_texts(path: Path, tell: Tell | None = None) -> tuple[str, ...]:
    """Return the lines of `path`, one text each. Raises InputError for one that `complaint` has, besides `read_lines`' own."""
    texts: list[str] = []
    for number, text in enumerate(read_lines(path, tell), 1):
        if fault := complaint(text):
            raise InputError(f"{path}, line {number}: {fault}")
        texts.append(text)
    return tuple(texts)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write `lines`, each ended by a line feed; gzip where the name, or that of a `staged` sibling, ends in .gz.

    The same lines give the same bytes: gzip's header gets no time and no name.
    """
    if ".gz" not in path.suffixes:
        with path.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(f"{line}\n" for line in lines)
        return
    with path.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as stream:
            stream.writelines(f"{line}\n" for line in lines)


def one_line(what: str, texts: Sequence[str], forbidden: str = "\n") -> Iterator[str]:
    r"""Yield `texts`. Raises InputError for one that a line cannot hold: with a character of `forbidden` in it ("\n" among
    them), with "\r" at its end, or a byte order mark at the start of the first.
    """
    for row, text in enumerate(texts):
        if any(mark in text for mark in forbidden) or text.endswith("\r") or (row == 0 and text.startswith("\ufeff")):
            held = "one line" if forbidden == "\n" else "one field of a line"
            raise InputError(f"{what}, row {row}: the text {excerpt(text)} does not fit {held}; write it as jsonl")
        yield text


def complaint(text: str) -> str | None:
    """Return what is wrong with `text` as a sentence that shows it, or None; see `dexml.text.text_fault`."""
    fault = text_fault(text)
    return None if fault is None else _sentence("text", text, fault)


def id_complaint(name: str) -> str | None:
    """Return what is wrong with the label id `name` as a sentence that shows it, or None; see `dexml.text.id_fault`."""
    fault = id_fault(name)
    return None if fault is None else _sentence("id", name, fault)


def _sentence(what: str, value: str, fault: TextFault) -> str:
    return f"the {what}{f' {excerpt(value)}' if value.strip() else ''} {fault.words}"


@contextmanager
def staged() -> Iterator[Callable[[Path], Path]]:
    """Give a temporary sibling for each path; all are renamed into place when the block ends well, or removed when not.

    A reader therefore sees the old file or the new one, never half of one. Raises InputError where writing is impossible.
    """
    moves: dict[Path, Path] = {}

    def sibling(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        moves[path] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        return moves[path]

    try:
        yield sibling
        for path, temporary in moves.items():
            os.replace(temporary, path)
    except OSError as error:  # no room, no permission, a file where a folder should be
        raise InputError(f"{error.filename or 'the data set'}: cannot be written ({error.strerror or error})") from None
    finally:
        for temporary in moves.values():
            with suppress(OSError):
                temporary.unlink()
