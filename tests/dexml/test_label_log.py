"""The log keeps every acknowledged record or says which is damaged, and drops nothing but a write that was cut off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dexml.errors import InputError
from dexml.label_log import Change, LabelLog

CHECKSUM = "ab" * 32
WIDTH = 8


def row(number: int) -> np.ndarray:
    return np.full(WIDTH, number, dtype=np.float32)


def opened(path: Path, **options: bool) -> LabelLog:
    return LabelLog(path, WIDTH, CHECKSUM, **options)


RECORDS = (
    (Change("a", "first", row(1)),),
    (Change("b", "zweite ÄÖ 名前 🎉", row(2)), Change("a"), Change("c", "x" * 1000, row(3))),
    (Change("b"),),
    (Change("a", "back", row(4)),),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "log" / "v000001.log"
    LabelLog.create(path, WIDTH, CHECKSUM)
    log = opened(path, writable=True)
    for number, record in enumerate(RECORDS, start=1):
        assert log.append(record) == number
    log.close()
    return path


def same(log: LabelLog, count: int = len(RECORDS)) -> None:
    assert [record.sequence for record in log.records] == list(range(1, count + 1))
    for found, expected in zip(log.records, RECORDS, strict=False):
        assert [(change.id, change.text) for change in found.changes] == [(change.id, change.text) for change in expected]
        for one, other in zip(found.changes, expected, strict=True):
            assert (one.row is None) == (other.row is None)
            assert one.row is None or np.array_equal(one.row, other.row)


def test_what_was_written_is_read(path: Path):
    same(opened(path))
    log = opened(path, writable=True)
    same(log)
    assert log.append([Change("d", "more", row(5))]) == 5
    log.close()
    assert opened(path).records[-1].changes[0].id == "d"


def test_every_single_bit_of_both_files_is_guarded(path: Path):
    for file in (path, path.with_suffix(".ack")):
        content = file.read_bytes()
        for bit in range(8 * len(content)):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(bytes(changed))
            with pytest.raises(InputError, match=rf"{file.name} (is damaged|holds|has|was)"):
                opened(path)
        file.write_bytes(content)
    same(opened(path))


def test_every_truncation_of_both_files_is_told(path: Path):
    for file in (path, path.with_suffix(".ack")):
        content = file.read_bytes()
        for length in range(len(content)):
            file.write_bytes(content[:length])
            with pytest.raises(InputError, match=file.name):
                opened(path)
        file.unlink()
        with pytest.raises(InputError, match=f"{file.name} is missing"):
            opened(path)
        file.write_bytes(content)
    same(opened(path))


def test_a_record_damaged_in_the_middle_is_named(path: Path):
    content = bytearray(path.read_bytes())
    content[content.index(b"zweite")] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"v000001\.log is damaged in record 2 \(from byte \d+ on\)"):
        opened(path)


def test_a_write_that_was_cut_off_goes_and_one_that_was_whole_stays(path: Path):
    """The bytes of a fifth record, as many as there were when the process was killed, before it was acknowledged."""
    whole, ack = path.read_bytes(), path.with_suffix(".ack").read_bytes()
    log = opened(path, writable=True)
    log.append([Change("e", "fifth", row(5))])
    log.close()
    fifth = path.read_bytes()
    for length in range(len(whole), len(fifth) + 1):
        path.write_bytes(fifth[:length])
        path.with_suffix(".ack").write_bytes(ack)
        count = 5 if length == len(fifth) else 4
        assert len(opened(path).records) == count
        log = opened(path, writable=True)
        assert log.append([Change("f", "next", row(6))]) == count + 1
        log.close()
        read = opened(path)
        assert [record.changes[0].id for record in read.records[4:]] == (["e", "f"] if count == 5 else ["f"])


def test_the_log_of_another_version_is_refused(path: Path):
    with pytest.raises(InputError, match="of another version"):
        LabelLog(path, WIDTH, "cd" * 32)
    with pytest.raises(InputError, match="of another version"):
        LabelLog(path, WIDTH + 1, CHECKSUM)


def test_a_full_disk_takes_nothing_half(path: Path):
    """A limit on the size of files is how a disk is full without root; each size at which the write can stop is tried."""
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    probe = f"""
import resource, signal, sys
sys.path[:0] = {sys.path!r}
import numpy as np
from pathlib import Path
from dexml.label_log import Change, LabelLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path({str(path)!r})
size, refused = path.stat().st_size, 0
for more in range(0, 120):
    log = LabelLog(path, {WIDTH}, {CHECKSUM!r}, writable=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + more, resource.RLIM_INFINITY))
    try:
        log.append([Change("g", "seventh text", np.ones({WIDTH}, dtype=np.float32))])
    except OSError:
        refused += 1
    else:
        sys.exit(0 if refused == more and refused > 60 else f"refused {{refused}} of {{more}}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        log.close()
    assert path.stat().st_size == size and len(LabelLog(path, {WIDTH}, {CHECKSUM!r}).records) == 4
sys.exit("never written")
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(before[path]) and len(opened(path).records) == 5


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_disk_that_fails_at_any_call(path: Path, monkeypatch: pytest.MonkeyPatch, call: str, failing: int):
    """EIO cannot be made without a broken disk: a stand-in for the call raises it, at the first call, the second and so on."""
    log = opened(path, writable=True)
    real, calls = getattr(os, call), []

    def fails(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) >= failing:
            raise OSError(5, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(os, call, fails)
    told = None
    try:
        log.append([Change("h", "text", row(8))])
    except OSError as error:
        told = error
    monkeypatch.undo()
    log.close()
    assert (told is None) == (failing > 2)
    assert len(opened(path).records) == (5 if told is None else 4)


def test_a_short_write_is_gone_on_with(path: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, content, offset: real(handle, bytes(content)[:3], offset))
    log = opened(path, writable=True)
    log.append([Change("i", "in small pieces", row(9))])
    log.close()
    monkeypatch.undo()
    assert opened(path).records[-1].changes[0].text == "in small pieces"
