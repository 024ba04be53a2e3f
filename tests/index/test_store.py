"""A bundle whose labels live: what was acknowledged is there, whatever is killed, damaged, full or compacted meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dexml import versions
from dexml.bundle import Bundle, extend, publish
from dexml.device import faiss_wheel
from dexml.errors import InputError
from dexml.label_log import Change
from index import INDEXES
from index.recovery import recover
from index.retriever import Retriever
from index.store import Store, activate

WIDTH = 32
ROOT = Path(__file__).parents[2]


def unit(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def store(bundle: Path) -> Iterator[Store]:
    with Store.open(bundle, writable=True) as opened:
        yield opened


def state(store: Store) -> dict[str, tuple[str, list[float]]]:
    labels, index = store.live.labels, store.live.index
    return {labels.ids[row]: (labels.texts[row], index.snapshot(np.array([row]))[0].tolist()) for row in labels.live().tolist()}


def test_writes_are_seen_by_the_next_search_and_by_who_opens_next(store: Store, bundle: Path):
    query = unit(1, 0)
    done = store.write([Change("new", "a new label", query[0]), Change("svd"), Change("fft", "another text", -query[0])])
    assert (done.sequence, done.changed.added, done.changed.deleted, done.changed.replaced) == (1, 1, 1, 1)
    for seen in (store, Store.open(bundle)):
        found = seen.live.index.search(torch.from_numpy(query), 20, 0.1)
        names = [seen.live.labels.ids[number] for number in found.ids[0].tolist() if number >= 0]
        assert len(names) == len(set(names)) == 10
        assert names[0] == "new" and names[-1] == "fft" and "svd" not in names
        assert seen.name == "v000001+1"
    assert state(Store.open(bundle)) == state(store)


def test_rows_are_made_unit_rows_and_what_is_no_label_changes_nothing(store: Store, bundle: Path):
    store.write([Change("long", "text", 1e30 * unit(1, 1)[0])])
    assert np.linalg.norm(state(store)["long"][1]) == pytest.approx(1, abs=1e-6)
    before = state(store)
    row = unit(1, 2)[0]
    for wrong, said in [
        (Change("", "text", row), "an id is empty"),
        (Change("a\nb", "text", row), r"control character U\+000A"),
        (Change("é" * 200, "text", row), "400 bytes"),
        (Change("a", "", row), "the text of 'a' is empty"),
        (Change("a", "\0", row), r"U\+0000"),
        (Change("a", "text", row[:3]), "must have 32 numbers, got 3"),
        (Change("a", "text", 0 * row), "all zeros"),
        (Change("a", "text", np.full(WIDTH, np.nan, dtype=np.float32)), "not finite"),
    ]:
        with pytest.raises(InputError, match=said):
            store.write([Change("fine", "text", row), wrong])
    for count in (0, 1001):
        with pytest.raises(InputError, match="between 1 and 1000"):
            store.write([Change("a", "b", row)] * count)
    assert state(store) == state(Store.open(bundle)) == before


def test_compaction_keeps_labels_and_answers(store: Store, bundle: Path):
    rows = unit(50, 3)
    store.write([Change(f"n{i}", f"text {i}", row) for i, row in enumerate(rows)])
    store.write([Change(f"n{i}") for i in range(0, 50, 3)] + [Change("ode")])
    before, queries = state(store), torch.from_numpy(unit(5, 4))
    names = answers(store, queries)
    assert store.compact() == store.name == "v000002"
    assert state(store) == state(Store.open(bundle)) == before and answers(store, queries) == names
    opened = Bundle.open(bundle)
    assert opened.manifest.labels == len(before) and opened.manifest.parent.version == "v000001"
    trained = dict(zip(opened.labels.ids, opened.train_counts.tolist(), strict=True))
    assert trained["n1"] == 0 and trained["svd"] > 0
    first = Bundle.read(bundle / "v000001", opened.manifest.model_validate_json((bundle / "v000001/manifest.json").read_text()))
    assert first.name == opened.name, "the model is the same"

    store.write([Change("later", "text", rows[0])])
    assert store.name == "v000002+1"
    assert store.compact() == "v000003" and "later" in state(Store.open(bundle))
    assert versions.names(bundle) == ["v000002", "v000003"]


def answers(store: Store, queries: torch.Tensor) -> list[list[str]]:
    found = store.live.index.search(queries, 20, 0.1)
    return [[store.live.labels.ids[number] for number in row if number >= 0] for row in found.ids.tolist()]


def test_writes_during_a_compaction_are_in_what_comes_out(store: Store, bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Every flush of a compaction is a moment at which a write can come, until it holds the writers back."""
    from index import store as module

    rows = iter(unit(100, 5))
    written = []

    def write() -> None:
        written.append(f"w{len(written)}")
        store.write([Change(written[-1], "text", next(rows))])

    for name in ("flush", "seal"):
        real = getattr(module.manifest_of, name)

        def and_write(*arguments: object, real=real):
            if not store._writing.locked():
                write()
            return real(*arguments)

        monkeypatch.setattr(module.manifest_of, name, and_write)
    write()
    store.compact()
    monkeypatch.undo()
    assert len(written) > 5
    assert set(written) <= set(state(store)) and state(Store.open(bundle)) == state(store)
    assert store.sequence == len(written) - 1, "the first is in the version, the others in its log"


def test_readers_and_writers_at_once(store: Store):
    """8 readers and 2 writers through 3 compactions: no duplicate, nothing deleted comes back, what was added is found."""
    rows, stop, wrong = unit(400, 6), threading.Event(), []

    def names(row: np.ndarray, k: int) -> list[str]:
        live = store.live
        found = live.index.search(torch.from_numpy(row[None]), k, 0.1)
        return [live.labels.ids[number] for number in found.ids[0].tolist() if number >= 0]

    def read(number: int) -> None:
        while not stop.is_set():
            found = names(rows[number], 100)
            if len(found) != len(set(found)) or any(name.startswith("gone") for name in found):
                wrong.append(found)

    def change(writer: int) -> None:
        for turn in range(60):
            name, row = f"{writer}-{turn % 7}", rows[100 * writer + turn]
            store.write([Change(name, "text", row), Change(f"gone-{writer}", "text", row), Change(f"gone-{writer}")])
            if names(row, 1) != [name]:
                wrong.append([name])
            store.write([Change(name)] if turn % 3 == 2 else [Change("never")])

    readers = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    writers = [threading.Thread(target=change, args=(number,)) for number in (1, 2)]
    for thread in readers + writers:
        thread.start()
    for _ in range(3):
        store.compact()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not wrong


def test_going_back_to_a_version(store: Store, bundle: Path):
    first = state(store)
    store.write([Change("svd")])
    store.compact()
    store.write([Change("fft")])
    with pytest.raises(InputError, match=r"no version 'v9'; it has v000001, v000002"):
        store.activate("v9")
    assert store.activate("v000001") == "v000003"
    assert state(store) == state(Store.open(bundle)) == first
    store.write([Change("ode")])
    assert "ode" not in state(Store.open(bundle))


def test_going_back_where_the_current_version_is_damaged(bundle: Path):
    with Store.open(bundle, writable=True) as store:
        first = state(store)
        store.write([Change("svd")])
        store.compact()
    rows = bundle / "v000002" / "embeddings.safetensors"
    rows.chmod(0o644)
    rows.write_bytes(b"\0" * rows.stat().st_size)
    with pytest.raises(InputError, match=r"v000002/embeddings\.safetensors was changed.*block 1 of 1, bytes 0 to"):
        Store.open(bundle)
    assert activate(bundle, "v000001") == "v000003"
    assert state(Store.open(bundle)) == first
    (bundle / "CURRENT").write_text("nonsense")
    with pytest.raises(InputError, match="CURRENT is damaged"):
        Store.open(bundle)
    assert activate(bundle, "v000003") == "v000004"
    assert state(Store.open(bundle)) == first


def test_a_damaged_version_is_made_anew_from_the_one_before_and_the_logs(bundle: Path):
    with Store.open(bundle, writable=True) as store:
        store.write([Change("svd"), Change("new", "text", unit(1, 1)[0])])
        store.compact()
        store.write([Change("newer", "text", unit(1, 2)[0]), Change("fft")])
        expected = state(store)
    with pytest.raises(InputError, match=r"nothing in .* is damaged"):
        recover(bundle)
    rows = bundle / "v000002" / "labels.jsonl"
    rows.chmod(0o644)
    rows.write_text("damaged")
    with pytest.raises(InputError, match=r"labels\.jsonl has 7 bytes"):
        Store.open(bundle)
    assert recover(bundle) == "v000003"
    assert state(Store.open(bundle)) == expected


def test_a_version_with_more_in_its_encoder_is_not_made_anew_without_it(bundle: Path):
    extended = extend(bundle, lambda folder: (folder / "encoder" / "more.bin").write_bytes(b"more") and None)
    rows = extended.root / "labels.jsonl"
    rows.chmod(0o644)
    rows.write_text("damaged")
    with pytest.raises(InputError, match="its encoder is not that of v000001: go back to it by --activate v000001"):
        recover(bundle)


def test_what_cannot_be_made_anew_is_told(bundle: Path):
    rows = bundle / "v000001" / "labels.jsonl"
    rows.chmod(0o644)
    whole = rows.read_text()
    rows.write_text("damaged")
    with pytest.raises(InputError, match="it came from a training, and what is left to go back to is nothing"):
        recover(bundle)
    rows.write_text(whole)
    with Store.open(bundle, writable=True) as store:
        store.write([Change("svd")])
        store.compact()
    for version in ("v000001", "v000002"):
        rows = bundle / version / "labels.jsonl"
        rows.chmod(0o644)
        rows.write_text("damaged")
    with pytest.raises(InputError, match=r"v000001/labels\.jsonl has 7 bytes"):
        recover(bundle)


def test_a_failing_compaction_changes_nothing(bundle: Path):
    """A limit on the size of files, set in a process of its own, is how a disk is full without root."""
    probe = f"""
import resource, signal, sys
sys.path[:0] = {sys.path!r}
import numpy as np
from pathlib import Path
from dexml.errors import InputError
from dexml.label_log import Change
from index.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store.open(Path({str(bundle)!r}), writable=True)
store.write([Change("before", "text", np.ones({WIDTH}, dtype=np.float32))])
for limit in (0, 100, 500, 1000, 1500):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        store.compact()
    except InputError as error:
        assert "cannot be written" in str(error), error
    else:
        sys.exit(f"no error under a limit of {{limit}} bytes")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.write([Change(f"after {{limit}}", "text", np.ones({WIDTH}, dtype=np.float32))])
assert store.compact() == "v000002"
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {"before", "after 0", "after 1500"} <= set(state(Store.open(bundle)))
    assert versions.names(bundle) == ["v000001", "v000002"]
    assert not [path for path in bundle.iterdir() if path.suffix]


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_every_file_of_a_bundle_is_guarded(bundle: Path, index: str):
    """Bits flipped and bytes cut at random in every file, and files swapped, deleted and added: all told before any answer."""
    if index == "faiss":
        faiss_bundle(bundle)
    with Store.open(bundle, writable=True) as store:
        store.write([Change("more", "text", unit(1, 7)[0])])
        store.compact()
        store.write([Change("most", "text", unit(1, 8)[0])])
    name = versions.current(bundle)[0].name
    files = [path for path in bundle.rglob("*") if path.is_file() and name in str(path)] + [bundle / "CURRENT"]
    assert any(path.name == "index.faiss" for path in files) == (index == "faiss")
    random = np.random.default_rng(0)
    for path in files:
        path.chmod(0o644)
        content = path.read_bytes()
        for _ in range(30):
            changed = bytearray(content)
            place = int(random.integers(8 * len(content)))
            changed[place // 8] ^= 1 << place % 8
            for broken in (bytes(changed), content[: int(random.integers(len(content)))], content + b"\0"):
                path.write_bytes(broken)
                if broken == content + b"\0" and path.suffix == ".log":
                    continue  # a write that was cut off
                with pytest.raises(InputError, match=path.name):
                    Store.open(bundle)
        path.unlink()
        with pytest.raises(InputError, match=path.name):
            Store.open(bundle)
        path.write_bytes(content)
    Store.open(bundle)
    older = f"v{int(name[1:]) - 1:06d}"
    logs = [bundle / "log" / f"{version}.log" for version in (older, name)]
    logs[0].rename(bundle / "swap")
    logs[1].rename(logs[0])
    (bundle / "swap").rename(logs[1])
    with pytest.raises(InputError, match="of another version"):
        Store.open(bundle)


def faiss_bundle(bundle: Path) -> None:
    """Publish the bundle anew behind an index that keeps a file."""
    if faiss_wheel() is None:
        pytest.skip("no FAISS wheel is installed")
    old, options = Bundle.open(bundle), {"factory": "HNSW8"}
    built = INDEXES.build("faiss", options)
    built.build(old.embeddings)
    facts = {key: getattr(old.manifest, key) for key in ("name", "temperature", "rerank", "data", "training")}
    facts["index"] = {"name": "faiss", **options}
    publish(bundle, old.model(), old.labels, old.train_counts, old.embeddings, facts, built.save)


def test_who_only_reads_cannot_write_and_two_cannot_write(store: Store, bundle: Path):
    with pytest.raises(InputError, match="is being written by another process"):
        Store.open(bundle, writable=True)
    with Retriever.open(bundle).store as reading, pytest.raises(AssertionError):
        reading.write([Change("svd")])


def test_the_retriever_rescores_what_was_added(bundle: Path):
    retriever = Retriever.open(bundle, writable=True)
    with retriever.store as store:
        text = "filtering matrices by regression"
        store.write([Change("both", text, retriever.model.embed_labels([text])[0].numpy())])
        store.write([Change("sorting")])
        for kind in ("topk", "all"):
            found = retriever.search([text, "sorting of arrays"], 11, normalize=kind)
            names = [[found.labels.ids[number] for number in row if number >= 0] for row in found.topk.ids.tolist()]
            assert names[0][0] == "both" and "sorting" not in names[1] and len(names[1]) == 10 == found.size
            assert found.probabilities()[0].sum() == pytest.approx(1, abs=1e-5)


def test_sigkill_at_random_moments_loses_nothing_acknowledged():
    """The experiment of benchmarks/kill_store.py, which kills three hundred times, with fewer kills."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "kill_store.py", "--publishing", "12", "--adding", "8", "--no-result"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] == 20 and told["wrong"] == 0 and told["writes"] > 20 and told["versions"] > 0
