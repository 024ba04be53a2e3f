"""A bundle is published whole, opens with its checks, and refuses any changed byte."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dexml import versions
from dexml.bundle import Bundle, extend
from dexml.errors import InputError


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def version(bundle: Path) -> Path:
    return versions.current(bundle)[0]


def test_it_opens_by_its_own_folder_and_by_the_run(tiny_bundle: Path):
    assert Bundle.open(tiny_bundle).name == Bundle.open(tiny_bundle.parent).name
    opened = Bundle.open(tiny_bundle)
    assert opened.embeddings.shape == (10, 32)
    assert opened.train_counts.sum() > 0
    assert opened.manifest.training.finished is True


def test_every_file_is_guarded_byte_by_byte(bundle: Path):
    files = [path for path in version(bundle).rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert len(files) >= 6
    for path in files:
        content = path.read_bytes()
        for offset in (0, len(content) // 2, len(content) - 1):
            changed = bytearray(content)
            changed[offset] ^= 0b100
            path.write_bytes(bytes(changed))
            with pytest.raises(InputError, match=f"{path.name} was changed"):
                Bundle.open(bundle)
        path.write_bytes(content[:-1])
        with pytest.raises(InputError, match=f"{path.name} has {len(content) - 1} bytes, expected {len(content)}"):
            Bundle.open(bundle)
        path.unlink()
        with pytest.raises(InputError, match=f"{path.name} is missing"):
            Bundle.open(bundle)
        path.write_bytes(content)
    Bundle.open(bundle)


def test_a_file_that_does_not_belong_is_refused(bundle: Path):
    version(bundle).joinpath("encoder", "modeling_evil.py").write_text("print()")
    with pytest.raises(InputError, match=r"modeling_evil\.py is not part of this bundle"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[]", "schema None"),
        (b'{"schema_version": 99}', "schema 99"),
        (b'{"schema_version": 1}', "schema 1"),
        (b'{"schema_version": 2}', "damaged"),
    ],
)
def test_a_damaged_manifest_is_one_line(bundle: Path, content: bytes, message: str):
    (version(bundle) / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Bundle.open(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.94),
        ("temperature", "x"),
        ("files", []),
        ("index", "faiss"),
        ("rerank", {}),
        ("created", None),
        ("name", "y"),
    ],
)
def test_any_change_of_the_manifest_itself_is_found(bundle: Path, field: str, value: object):
    path = version(bundle) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[field] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"manifest\.json.*(changed|damaged)"):
        Bundle.open(bundle)
    del manifest[field]
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"manifest\.json.*(changed|damaged)"):
        Bundle.open(bundle)


def test_hidden_files_of_a_desktop_do_no_harm(bundle: Path):
    (bundle / ".DS_Store").write_bytes(b"x")
    (version(bundle) / ".DS_Store").write_bytes(b"x")
    Bundle.open(bundle)


def test_a_full_disk_is_told_and_the_old_bundle_stays(tiny_bundle: Path, bundle: Path):
    """A limit on the size of files, set in a process of its own, is how a disk is full without root."""
    probe = f"""
import resource, sys
from pathlib import Path
from dexml.bundle import Bundle, publish
from dexml.errors import InputError
opened = Bundle.open(Path({str(tiny_bundle)!r}))
model = opened.model()
facts = {{key: getattr(opened.manifest, key) for key in ("name", "temperature", "index", "rerank", "data", "training")}}
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (0, 100, 1000, 100_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        publish(Path({str(bundle)!r}), model, opened.labels, opened.train_counts, opened.embeddings, facts, lambda _: None)
    except InputError as error:
        assert "cannot be written" in str(error), error
    else:
        sys.exit(f"no error under a limit of {{limit}} bytes")
"""
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in bundle.parent.rglob("*") if path.is_file()} == before


def test_a_folder_without_a_bundle_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(InputError, match="dexml train"):
        Bundle.open(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        Bundle.open(tmp_path / "nowhere")


def test_publishing_again_replaces_the_old_bundle_and_leaves_nothing_behind(tiny_bundle: Path, tmp_path: Path):
    from dexml.bundle import publish

    opened = Bundle.open(tiny_bundle)
    facts = {key: getattr(opened.manifest, key) for key in ("name", "temperature", "index", "rerank", "data", "training")}
    for factor in (1.0, -1.0):
        publish(
            tmp_path / "again",
            opened.model(),
            opened.labels,
            opened.train_counts,
            factor * opened.embeddings,
            facts,
            lambda _: None,
        )
    again = tmp_path / "again"
    assert torch.equal(Bundle.open(again).embeddings, -opened.embeddings)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    assert sorted(path.name for path in again.iterdir()) == ["CURRENT", "LOCK", "log", "v000001", "v000002"]
    assert version(again).name == "v000002"


def test_only_the_last_version_and_the_one_before_are_kept(tiny_bundle: Path, bundle: Path):
    for number in range(2, 5):
        grown = extend(bundle, lambda folder: None)
        assert grown.root.name == f"v{number:06d}" and version(bundle) == grown.root
        assert versions.names(bundle) == [f"v{number - 1:06d}", f"v{number:06d}"]
    assert sorted(path.name for path in (bundle / "log").iterdir()) == [
        f"v{number:06d}.{kind}" for number in (3, 4) for kind in ("ack", "log")
    ]
    assert all(path.stat().st_mode & 0o222 == 0 for path in version(bundle).rglob("*") if path.is_file())


def test_what_a_killed_publisher_left_is_no_version_and_goes(bundle: Path):
    name = Bundle.open(bundle).name
    shutil.copytree(version(bundle), bundle / "v000002")  # whole, and never named
    shutil.copytree(version(bundle), bundle / "v000003.tmp")
    shutil.copytree(version(bundle), bundle / "v000000.deleted")
    (bundle / "CURRENT.tmp").write_text("v000002")
    assert Bundle.open(bundle).name == name and version(bundle).name == "v000001"
    extend(bundle, lambda folder: None)
    assert versions.names(bundle) == ["v000001", "v000002"]
    assert not [path for path in bundle.iterdir() if path.suffix in (".tmp", ".deleted")]


@pytest.mark.parametrize("content", [b"", b"v000001", b"v000009 sha256:0123456789abcdef\n", b"\xff\xfe"])
def test_a_damaged_pointer_is_told(bundle: Path, content: bytes):
    (bundle / "CURRENT").write_bytes(content)
    with pytest.raises(InputError, match=r"CURRENT.*v000001") as caught:
        Bundle.open(bundle)
    assert "\n" not in str(caught.value)


def test_one_process_writes_at_a_time(bundle: Path):
    with versions.locked(bundle), pytest.raises(InputError, match="is being written by another process"):
        extend(bundle, lambda folder: None)


def test_a_bundle_grows_whole_or_not_at_all(bundle: Path):
    before = Bundle.open(bundle)
    weights = (before.root / "embeddings.safetensors").stat().st_ino
    (before.root / ".DS_Store").write_bytes(b"left by a desktop")
    grown = extend(bundle, lambda folder: (folder / "encoder" / "more.bin").write_bytes(b"more") and None)
    assert grown.root == version(bundle) != before.root and grown.name != before.name
    assert set(grown.manifest.files) - set(before.manifest.files) == {"encoder/more.bin"}
    assert (grown.root / "embeddings.safetensors").stat().st_ino == weights, "linked, not copied"
    assert grown.manifest.training == before.manifest.training

    for error in (InputError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")):

        def fail(folder: Path, error: BaseException = error) -> None:
            (folder / "half.bin").write_bytes(b"half")
            raise error

        with pytest.raises((InputError, KeyboardInterrupt)):
            extend(bundle, fail)
        assert Bundle.open(bundle).name == grown.name
        assert versions.names(bundle) == ["v000001", "v000002"]
