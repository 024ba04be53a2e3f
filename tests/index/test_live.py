"""Labels that come, change and go while they are searched: every answer against a brute force in float64 over what is live."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from dexml.device import faiss_wheel
from dexml.kernels import choose
from dexml.label_log import Change
from dexml.types import LabelTable
from index import INDEXES
from index.live import Live, LiveIndex, LiveLabels
from index.store import Store

WIDTH, TAU = 24, 0.05
INDEXED = [
    ("exact", {}),
    ("exact", {"scan_copy": "int16"}),
    ("faiss", {}),
    ("faiss", {"factory": "IVF8,Flat", "nprobe": 8}),
    ("faiss", {"factory": "HNSW32", "ef_search": 2048}),
]


def unit(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(params=INDEXED, ids=lambda row: "-".join([row[0], *map(str, row[1].values())]))
def built(request):
    name, options = request.param
    if name == "faiss" and faiss_wheel() is None:
        pytest.skip("no FAISS wheel is installed")

    def build(rows: np.ndarray) -> Live:
        index = INDEXES.build(name, options) if len(rows) else None
        if index is not None:
            index.build(torch.from_numpy(rows))
        ids = tuple(f"label {number}" for number in range(len(rows)))
        labels = LiveLabels(LabelTable(ids, ids), np.arange(len(rows)))
        return Live(labels, LiveIndex(index, torch.from_numpy(rows), choose()))

    return build


def truth(live: Live, model: dict[str, np.ndarray], queries: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
    """Return the k best ids of each query and log Σ e^{s/τ}, by float64 over the labels of `model`."""
    ids = list(model)
    scores = queries.astype(np.float64) @ np.stack([model[label] for label in ids]).astype(np.float64).T
    best = [[ids[place] for place in np.argsort(-row, kind="stable")[:k]] for row in scores]
    return best, torch.logsumexp(torch.from_numpy(scores) / TAU, dim=1).numpy()


def compare(live: Live, model: dict[str, np.ndarray], queries: np.ndarray, k: int = 100) -> None:
    assert len(live.labels) == len(live.index) == len(model)
    found = live.index.search(torch.from_numpy(queries), k, TAU)
    if not model:
        assert (found.ids == -1).all()
        return
    best, log_z = truth(live, model, queries, k)
    for row, expected in enumerate(best):
        numbers = [number for number in found.ids[row].tolist() if number >= 0]
        assert [live.labels.ids[number] for number in numbers] == expected
        assert [live.labels.row(label) for label in expected] == numbers
        scores = [float(model[label] @ queries[row]) for label in expected]
        assert found.scores[row, : len(numbers)].tolist() == pytest.approx(scores, abs=1e-5)
        assert (found.scores[row, len(numbers) :] == -torch.inf).all()
    every = live.index.log_partition(torch.from_numpy(queries), TAU, found)
    assert np.allclose(every.numpy(), log_z, atol=2e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_any_order_of_changes_answers_as_brute_force_does(built, seed: int):
    random = np.random.default_rng(seed)
    live = built(unit(300, seed))
    model = dict(zip(live.labels.ids, unit(300, seed), strict=True))
    fresh = iter(unit(4000, 100 + seed))
    queries = unit(8, 50 + seed)
    compare(live, model, queries)
    for round_ in range(25):
        changes = []
        for _ in range(int(random.integers(1, 30))):
            label = f"label {int(random.integers(500))}"
            row = None if random.random() < 0.5 else next(fresh)
            changes.append(Change(label, label, row))
        before = set(model)
        for change in changes:
            model.pop(change.id, None)
            if change.row is not None:
                model[change.id] = change.row
        done = live.change(changes)
        assert done.added == len(set(model) - before) and done.deleted == len(before - set(model))
        compare(live, model, queries, k=int(random.choice([1, 10, 100, 1000])) if round_ % 3 else 100)


def test_nothing_left_and_something_again(built):
    live = built(unit(40, 3))
    live.change([Change(label) for label in list(live.labels.ids)])
    compare(live, {}, unit(3, 4))
    assert (
        live.index.log_partition(torch.from_numpy(unit(3, 4)), TAU, live.index.search(torch.from_numpy(unit(3, 4)), 1, TAU))
        == -torch.inf
    ).all()
    row = unit(1, 5)[0]
    live.change([Change("back", "again", row)])
    compare(live, {"back": row}, unit(3, 4))


def test_a_version_without_labels_takes_some(built):
    live = built(unit(0, 0).reshape(0, WIDTH))
    compare(live, {}, unit(3, 4))
    row = unit(1, 5)[0]
    live.change([Change("first", "text", row)])
    compare(live, {"first": row}, unit(3, 4))


def test_log_z_without_the_labels_that_held_nearly_all_of_it(built):
    """Subtraction would cancel: 1 - 0.999999 in float32."""
    queries = unit(4, 9)
    rows = np.concatenate([unit(2000, 8), queries, queries])
    live = built(rows)
    model = dict(zip(live.labels.ids, rows, strict=True))
    for label in list(model)[2000:]:
        live.change([Change(label)])
        del model[label]
    compare(live, model, queries)


def test_of_several_changes_to_a_label_in_one_call_the_last_counts(built):
    live = built(unit(40, 3))
    model = dict(zip(live.labels.ids, unit(40, 3), strict=True))
    one, other = unit(2, 6)
    done = live.change([Change("new", "a", one), Change("new", "b", other), Change("label 3"), Change("label 3", "c", one)])
    assert (done.added, done.replaced, done.deleted) == (1, 1, 0)
    compare(live, model | {"new": other, "label 3": one}, unit(5, 7))
    assert live.labels.texts[live.labels.row("new")] == "b"
    assert live.change([Change("never there")]).deleted == 0


def test_an_answer_is_read_by_number_after_its_label_is_gone(built):
    live = built(unit(40, 3))
    found = live.index.search(torch.from_numpy(unit(1, 4)), 3, TAU)
    names = [live.labels.ids[number] for number in found.ids[0].tolist()]
    live.change([Change(name) for name in names])
    live.change([Change(f"new {i}", "x", row) for i, row in enumerate(unit(50, 5))])
    assert [live.labels.ids[number] for number in found.ids[0].tolist()] == names


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("exact", {}),
        ("faiss", {}),
        ("faiss", {"factory": "IVF16,Flat", "nprobe": 16}),
        ("faiss", {"factory": "HNSW32", "ef_search": 4096}),
    ],
    ids=["exact", "Flat", "IVF", "HNSW"],
)
def test_a_hundred_thousand_changes_through_compactions(tmp_path, tiny_bundle, name, options):
    """In random order, in a bundle on disk; compared before, during and after each compaction."""
    if name == "faiss" and faiss_wheel() is None:
        pytest.skip("no FAISS wheel is installed")
    from dexml.bundle import Bundle, publish

    old = Bundle.open(tiny_bundle)
    random = np.random.default_rng(0)
    fresh, width = iter(unit(80_000, 1)), old.manifest.dimension
    pad = np.zeros(width - WIDTH, dtype=np.float32)

    def row() -> np.ndarray:
        return np.concatenate([next(fresh), pad])

    names = [f"label {number}" for number in range(1500)]
    model = {label: row() for label in names[:1000]}
    facts = {key: getattr(old.manifest, key) for key in ("name", "temperature", "rerank", "data", "training")}
    rows, table = torch.from_numpy(np.stack(list(model.values()))), LabelTable(tuple(model), tuple(model))
    built = INDEXES.build(name, options)
    built.build(rows)
    facts["index"] = {"name": name, **options}
    publish(tmp_path / "bundle", old.model(), table, np.ones(len(model), dtype=np.int64), rows, facts, built.save)
    queries = np.concatenate([unit(10, 2), np.zeros((10, width - WIDTH), dtype=np.float32)], axis=1)
    with Store.open(tmp_path / "bundle", writable=True) as store:
        for turn in range(200):
            changes = []
            for label in random.choice(names, 500):
                changes.append(Change(str(label), "text", row() if random.random() < 0.6 else None))
                model.pop(str(label), None)
                if changes[-1].row is not None:
                    model[str(label)] = changes[-1].row
            store.write(changes)
            if turn % 40 == 39:
                compare(store.live, model, queries)
                compacting = threading.Thread(target=store.compact)
                compacting.start()
                while compacting.is_alive():
                    compare(store.live, model, queries)
                compacting.join()
                compare(store.live, model, queries)
    compare(Store.open(tmp_path / "bundle").live, model, queries)
