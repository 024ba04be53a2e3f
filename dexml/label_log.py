"""The write-ahead log of a version: labels added, replaced and deleted since it was published, durable before they are told.

VERSION.log   header, then records: length, CRC-32 of the changes, sequence number, CRC-32 of these three; then the changes
VERSION.ack   how many bytes and records of the log have been acknowledged, with a CRC-32

A record holds the changes of one call, so that they take effect together or not at all. Its bytes are flushed before the
acknowledgement is, and that before the caller is told. What follows the acknowledged bytes is a write that was cut off, and is
dropped; damage before that is told with its place, and so is a log that ends too early.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dexml.errors import InputError
from dexml.types import Float32Array

_MAGIC = b"dexmllog"
_HEADER = struct.Struct("<8sII32sI")  # magic, format, dimension, the version's checksum, CRC
_RECORD = struct.Struct("<IIII")  # length, CRC of the changes, sequence, CRC of the first three
_ACK = struct.Struct("<8sQII")  # magic, bytes, records, CRC
_CHANGE = struct.Struct("<BHI")  # kind, bytes of the id, bytes of the text
_FORMAT = 1
_PUT, _DELETE = 1, 0
_BATCH = 1 << 30  # bytes of one record


@dataclass(frozen=True, eq=False)
class Change:
    """A label put there, new or in place of the one that has its id, with `text` and unit `row` float32 (D).

    Without a row, the label is deleted.
    """

    id: str
    text: str = ""
    row: Float32Array | None = None


@dataclass(frozen=True, eq=False)
class Record:
    """The changes of one call, and its number, counted from 1."""

    sequence: int
    changes: tuple[Change, ...]


class LabelLog:
    """A log being read or, by the one who holds the bundle's lock, written."""

    def __init__(self, path: Path, dimension: int, checksum: str, *, writable: bool = False) -> None:
        """Open `path`, made by `create` for the version with that `checksum` (hexadecimal) and dimension D.

        Raises InputError that names the file and the record, or the bytes, when anything acknowledged is damaged or missing.
        """
        self.path, self.dimension, self.checksum = path, dimension, checksum
        self._handles: tuple[int, int] | None = None
        self._broken = False
        self.acknowledged, self._length = self._read_acknowledgement()
        self.records = list(self._read())
        if writable:
            self._handles = (os.open(path, os.O_RDWR | os.O_CLOEXEC), os.open(_ack(path), os.O_RDWR | os.O_CLOEXEC))
            # A record that was whole but not yet acknowledged is kept, and acknowledged now; half a record goes.
            os.ftruncate(self._handles[0], self._length)
            os.fsync(self._handles[0])
            _write(self._handles[1], _seal(_ACK, _MAGIC, self._length, len(self.records)), 0)
            os.fsync(self._handles[1])
            self.acknowledged = len(self.records)

    @staticmethod
    def create(path: Path, dimension: int, checksum: str) -> None:
        """Write an empty log, flushed."""
        path.parent.mkdir(exist_ok=True)
        _written(path, _head(dimension, checksum))
        _written(_ack(path), _seal(_ACK, _MAGIC, _HEADER.size, 0))
        _flush_folder(path.parent)

    @property
    def writable(self) -> bool:
        """Whether it was opened to be written."""
        return self._handles is not None

    @property
    def bytes(self) -> int:
        """The length of all whole records, with the header."""
        return self._length

    def append(self, changes: Sequence[Change]) -> int:
        """Write one record, and return its number once it will survive a power cut.

        Raises OSError when the disk is full or fails: nothing of the record is left then, or the log takes no more.
        """
        assert self._handles is not None, "opened to be read"
        if self._broken:
            raise OSError(f"{self.path}: an earlier write failed half way; open the bundle again")
        number = self.acknowledged + 1
        body = b"".join(_encoded(change, self.dimension) for change in changes)
        if len(body) > _BATCH:
            raise InputError(f"labels: {len(changes)} at once are {len(body):,} bytes; {_BATCH:,} are allowed")
        record = _seal(_RECORD, len(body), zlib.crc32(body), number) + body
        log, ack = self._handles
        told = False
        try:
            _write(log, record, self._length)
            os.fdatasync(log)
            _write(ack, _seal(_ACK, _MAGIC, self._length + len(record), number), 0)
            told = True
            os.fdatasync(ack)
        except OSError:
            self._undo(told)
            raise
        self._length += len(record)
        self.acknowledged = number
        return number

    def close(self) -> None:
        """Let go of the files."""
        for handle in self._handles or ():
            os.close(handle)
        self._handles = None

    def _undo(self, told: bool) -> None:
        """Take back a record that could not be written whole, or whose acknowledgement, `told` or not, could not be flushed."""
        assert self._handles is not None
        log, ack = self._handles
        try:
            # In this order: whoever is killed in between leaves a record that was not acknowledged, and no damage.
            if told:
                _write(ack, _seal(_ACK, _MAGIC, self._length, self.acknowledged), 0)
            os.ftruncate(log, self._length)
            os.fsync(log)
            os.fsync(ack)
        except OSError:
            self._broken = True

    def _read_acknowledgement(self) -> tuple[int, int]:
        """Return how many records, and how many bytes, were acknowledged."""
        path = _ack(self.path)
        for attempt in (0, 1):  # again, where a writer was at it just then
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                raise InputError(f"bundle: {path} is missing") from None
            if _intact(_ACK, content) and content.startswith(_MAGIC):
                _, length, records, _ = _ACK.unpack(content)
                return records, length
            if attempt:
                break
        raise InputError(f"bundle: {path} is damaged: it has {len(content)} bytes, or its CRC-32 differs")

    def _read(self) -> Iterator[Record]:
        """Yield the records, and set the length of the whole ones."""
        acknowledged = self._length
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            raise InputError(f"bundle: {self.path} is missing") from None
        if len(content) < acknowledged:
            raise InputError(f"bundle: {self.path} has {len(content)} bytes, but {acknowledged} were acknowledged")
        if content[: _HEADER.size] != _head(self.dimension, self.checksum):
            raise InputError(f"bundle: {self.path} is damaged, or the log of another version (bytes 0 to {_HEADER.size - 1})")
        place, number, view = _HEADER.size, 0, memoryview(content)
        while place < len(content):
            start = place + _RECORD.size
            head = content[place:start]
            whole = _intact(_RECORD, head)
            length, crc, sequence, _ = _RECORD.unpack(head) if whole else (0, 0, 0, 0)
            body = view[start : start + length]
            whole = whole and len(body) == length and zlib.crc32(body) == crc and sequence == number + 1
            if not whole:
                if place >= acknowledged:
                    break
                raise InputError(f"bundle: {self.path} is damaged in record {number + 1} (from byte {place} on)")
            number += 1
            yield Record(number, tuple(self._changes(body, number)))
            place = start + length
        self._length = place
        if number < self.acknowledged or place < acknowledged:
            raise InputError(f"bundle: {self.path} holds {number} records, but {self.acknowledged} were acknowledged")

    def _changes(self, body: memoryview, number: int) -> Iterator[Change]:
        place, width = 0, 4 * self.dimension
        try:
            while place < len(body):
                kind, of_id, of_text = _CHANGE.unpack_from(body, place)
                place += _CHANGE.size
                name = str(body[place : place + of_id], "utf-8")
                place += of_id
                text = str(body[place : place + of_text], "utf-8")
                place += of_text
                row = None
                if kind == _PUT:
                    row = np.frombuffer(body[place : place + width], dtype=np.float32)
                    place += width
                yield Change(name, text, row)
        except (struct.error, UnicodeDecodeError, ValueError) as error:
            raise InputError(f"bundle: {self.path}: record {number} makes no sense ({error})") from None


def _encoded(change: Change, dimension: int) -> bytes:
    name, text = change.id.encode(), change.text.encode()
    if change.row is None:
        return _CHANGE.pack(_DELETE, len(name), 0) + name
    assert change.row.shape == (dimension,) and change.row.dtype == np.float32
    return _CHANGE.pack(_PUT, len(name), len(text)) + name + text + change.row.tobytes()


def _head(dimension: int, checksum: str) -> bytes:
    return _seal(_HEADER, _MAGIC, _FORMAT, dimension, bytes.fromhex(checksum))


def _seal(form: struct.Struct, *values: object) -> bytes:
    """Return the values packed, with the CRC-32 of what stands before it as the last."""
    unsealed = form.pack(*values, 0)[:-4]
    return unsealed + struct.pack("<I", zlib.crc32(unsealed))


def _intact(form: struct.Struct, content: bytes) -> bool:
    return len(content) == form.size and struct.unpack("<I", content[-4:])[0] == zlib.crc32(content[:-4])


def _write(handle: int, content: bytes, offset: int) -> None:
    """Write all of `content`: a system may take a part at a time, and tells a full disk only at the next."""
    view = memoryview(content)
    while view:
        done = os.pwrite(handle, view, offset)
        view, offset = view[done:], offset + done


def _written(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _ack(path: Path) -> Path:
    return path.with_suffix(".ack")
