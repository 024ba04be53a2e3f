"""Canary queries: kept when a version is published, asked before it answers, renewed with its labels."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dexml import versions
from dexml.device import faiss_wheel
from dexml.errors import InputError
from dexml.label_log import Change
from dexml.manifest import Row
from index import canary
from index.store import Store


@pytest.fixture
def store(tiny_bundle: Path, tmp_path: Path) -> Iterator[Store]:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with Store.open(bundle, writable=True) as opened:
        yield opened


def test_they_are_kept_with_the_true_answers(store: Store):
    kept = canary.read(store.bundle.root)
    assert 1 <= len(kept) <= 5 and [each.query for each in kept] == list(store.bundle.manifest.examples)
    rows = np.asarray(store.bundle.embeddings, dtype=np.float64)
    for each in kept:
        scores = rows @ np.asarray(each.row)
        assert [store.bundle.labels.ids[row] for row in np.argsort(-scores, kind="stable")[:5]] == list(each.labels)
        assert np.abs(np.sort(scores)[::-1][:5] - each.scores).max() < 1e-6


def test_writes_since_do_not_make_them_fail_and_compaction_renews_them(store: Store):
    best = canary.read(store.bundle.root)[0]
    store.write([Change(label) for label in best.labels[:2]] + [Change("new", "text", np.asarray(best.row, np.float32))])
    canary.check(store.live)
    store.compact()
    renewed = canary.read(store.bundle.root)[0]
    assert renewed.labels[0] == "new" and renewed.scores[0] == pytest.approx(1, abs=1e-5)
    assert not set(renewed.labels) & set(best.labels[:2]) and renewed.row == best.row
    canary.check(store.live)


@pytest.mark.skipif(faiss_wheel() is None, reason="no FAISS on this machine")
def test_an_index_that_loads_and_finds_nothing_is_told(store: Store):
    rows = torch.nn.functional.normalize(torch.randn(400, 32, generator=torch.Generator().manual_seed(0)))
    store.write([Change(f"l{number}", "text", row) for number, row in enumerate(rows.numpy())])
    store.compact(Row(name="faiss", factory="IVF8,Flat", nprobe=8, device="cpu"))
    canary.check(store.live)
    base = store.live.index.base
    base.search = lambda queries, k, temperature: type(base).search(base, -queries, k, temperature)
    with pytest.raises(InputError, match=r"v000002: its index finds \d+ of \d+ labels known to be the best"):
        canary.check(store.live)


def test_a_version_from_before_there_were_any_passes(store: Store):
    file = store.bundle.root / canary.FILE
    file.chmod(0o644)
    file.unlink()
    canary.check(store.live)


def test_a_file_of_them_that_makes_no_sense_is_named(store: Store):
    file = store.bundle.root / canary.FILE
    file.chmod(0o644)
    for content in ("{", '{"canaries": [{"query": 1}]}'):
        file.write_text(content)
        with pytest.raises(InputError, match=r"canary\.json"):
            canary.check(store.live)
    assert versions.current(store.root)
