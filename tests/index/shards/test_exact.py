"""A bundle in any number of shards answers as it does whole: ids, scores, log Z, whatever is added, deleted and compacted."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dexml.bundle import Bundle, publish
from dexml.device import faiss_wheel
from dexml.errors import InputError
from dexml.label_log import Change
from dexml.manifest import MemoryFacts, Row
from dexml.memory import Memory
from dexml.types import LabelTable, Positives, TopK
from index import INDEXES
from index.diversity import Diversity
from index.merge import merged
from index.patience import Patience
from index.retriever import Found, Retriever
from index.shards.base import Engine, refused
from index.shards.index import ShardedIndex
from index.shards.shard import Shard

WIDTH, LABELS, QUERIES = 32, 600, 80
CUTS = {
    1: (0, LABELS),
    2: (0, 17, LABELS),
    4: (0, 0, 350, 351, LABELS),
    7: (0, 100, 100, 180, 260, 500, 599, LABELS),
}
FACTS = MemoryFacts(queries=QUERIES, texts=True, weight=0.7, temperature=0.08, neighbours=12)


class Together(Engine):
    """Shards in this process, asked one after the other."""

    def __init__(self, shards: int):
        self.shards = shards
        self.parts = [Shard() for _ in range(shards)]

    def load(self, key, folders):
        loaded = [part.load(key, str(folder)) for part, folder in zip(self.parts, folders, strict=True)]
        refused(loaded)
        return loaded

    def drop(self, key):
        for part in self.parts:
            part.drop(key)

    def change(self, key, shard, step, change):
        self.parts[shard].change(key, step, [change])

    def ask(self, question, patience, missed):
        return [part.answer(question, step) for part, step in zip(self.parts, question.steps, strict=True)]

    @property
    def up(self):
        return (1,) * self.shards

    def describe(self):
        return {"engine": "together"}


def unit(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def table() -> torch.Tensor:
    """Rows of which every tenth is one of eight, so that equal scores lie in all shards."""
    rows = unit(LABELS, 0)
    rows[::10] = unit(8, 9)[np.arange(len(rows[::10])) % 8]
    return torch.from_numpy(rows)


def made(tiny_bundle: Path, root: Path, index: Row, memory: bool) -> Path:
    old = Bundle.open(tiny_bundle)
    built = INDEXES.build(index.name, index.options)
    built.build(table())
    facts = {key: getattr(old.manifest, key) for key in ("name", "temperature", "rerank", "data", "training")}
    facts["index"] = index
    kept = None
    if memory:
        random = np.random.default_rng(1)
        rows = [list(random.choice(LABELS, random.integers(1, 6), replace=False)) for _ in range(QUERIES)]
        kept = Memory(torch.from_numpy(unit(QUERIES, 2)), Positives.from_rows(rows, LABELS), tuple(map(str, range(QUERIES))))
        facts["memory"] = FACTS
    ids = tuple(f"label {number}" for number in range(LABELS))
    counts = np.ones(LABELS, dtype=np.int64)
    publish(root, old.model(), LabelTable(ids, ids), counts, table(), facts, built.save, kept)
    return root


@pytest.fixture(scope="module", params=["exact", "memory"])
def published(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tiny_bundle, tmp_path_factory.mktemp("shards") / "bundle", Row(name="exact"), request.param == "memory")


@pytest.fixture
def bundle(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "bundle"))


def opened(bundle: Path, cuts: Sequence[int], writable: bool = False) -> Retriever:
    engine = Together(len(cuts) - 1)

    def spread(version, row, kernels):
        even = ShardedIndex.on(engine)
        return (
            ShardedIndex(version, row, kernels, engine, cuts)
            if len(version.labels) == cuts[-1]
            else even(version, row, kernels)
        )

    return Retriever.open(bundle, writable=writable, spread=spread)


def same(one: Found, other: Found) -> None:
    assert torch.equal(one.topk.ids, other.topk.ids)
    assert torch.allclose(one.topk.scores, other.topk.scores, rtol=0, atol=1e-6)
    assert torch.allclose(one.topk.log_z, other.topk.log_z, rtol=0, atol=1e-5)
    assert (one.exact, one.size, one.version, one.rescored, one.known) == (
        other.exact,
        other.size,
        other.version,
        other.rescored,
        other.known,
    )
    assert one.why == other.why
    if one.ranks is not None:
        assert torch.allclose(one.ranks, other.ranks, rtol=0, atol=1e-6)


def compare(whole: Retriever, sharded: Retriever, queries: torch.Tensor, **how) -> None:
    if not whole.remembered:
        how["why"] = False
    same(whole.search_embeddings(queries, 20, **how), sharded.search_embeddings(queries, 20, **how))


@pytest.mark.parametrize("shards", CUTS)
def test_any_number_of_uneven_shards_answers_as_one(bundle: Path, shards: int):
    with Retriever.open(bundle).store as one, opened(bundle, CUTS[shards]).store as many:
        whole, sharded = Retriever(one), Retriever(many)
        queries = torch.cat([torch.from_numpy(unit(1000, 5)), table()[:60]])  # the last have many labels of equal score
        compare(whole, sharded, queries, normalize="all", temperature=0.03)
        for normalize in ("none", "topk", "sigmoid"):
            compare(whole, sharded, queries[-80:], normalize=normalize)
        compare(whole, sharded, queries[-80:], candidates=LABELS, why=True)
        diverse = Diversity(0.4, frozenset({"label 10", "label 11"}), 0.1)
        compare(whole, sharded, queries[-80:-40], candidates=50, diversity=diverse, normalize="all")
        compare(whole, sharded, torch.zeros(2, WIDTH), normalize="all")


@pytest.mark.parametrize("shards", [2, 7])
def test_labels_that_come_and_go_are_routed_to_their_shard(bundle: Path, tmp_path: Path, shards: int):
    twin = Path(shutil.copytree(bundle, tmp_path / "twin"))
    random, fresh = np.random.default_rng(3), iter(unit(4000, 4))
    queries = torch.cat([torch.from_numpy(unit(40, 6)), table()[:40]])
    with Retriever.open(bundle, writable=True).store as one, opened(twin, CUTS[shards], writable=True).store as many:
        whole, sharded = Retriever(one), Retriever(many)
        for turn in range(4):
            added = [f"new {number}" for number in random.choice(50, 8, replace=False)]
            replaced, gone = (random.choice(LABELS, 40, replace=False) for _ in range(2))
            changes = [Change(name, name, next(fresh)) for name in (*added, *(f"label {n}" for n in replaced))]
            changes[0] = Change(changes[0].id, "tied", table()[0].numpy())  # as many others are
            changes += [Change(name) for name in (*(f"label {n}" for n in gone), *added[5:7], "nobody")]
            assert one.write(changes).changed == many.write(changes).changed
            for normalize in ("topk", "all"):
                compare(whole, sharded, queries, normalize=normalize, why=True)
            if turn == 2:
                assert one.compact() == many.compact() == "v000002"
                compare(whole, sharded, queries, normalize="all", why=True)
                # The version before went as soon as nobody read it.
                assert all(list(part._parts) == [many.live.index._key] for part in many.live.index._engine.parts)
        every = [Change(one.live.labels.ids[row]) for row in one.live.labels.live()]
        for store in (one, many):
            store.write(every)
        compare(whole, sharded, queries, normalize="all")
        assert not len(many.live.labels) and not len(many.live.index)


def test_a_restart_reads_the_log_into_the_shards(bundle: Path):
    with opened(bundle, CUTS[4], writable=True).store as store:
        store.write([Change("new", "a new one", unit(1, 8)[0]), Change("label 3"), Change("label 599")])
    with Retriever.open(bundle).store as one, opened(bundle, CUTS[7]).store as many:
        whole, sharded = Retriever(one), Retriever(many)
        sharded.warm()
        compare(whole, sharded, torch.from_numpy(unit(50, 8)), normalize="all", why=True)


def test_a_damaged_part_is_refused_by_name_and_made_anew_once_removed(bundle: Path):
    opened(bundle, CUTS[2]).store.close()
    (folder,) = (bundle / "shards").glob("v000001-*/1-of-2")
    rows = folder / "rows.safetensors"
    rows.chmod(0o644)
    content = bytearray(rows.read_bytes())
    content[-5] ^= 1
    rows.write_bytes(content)
    with pytest.raises(InputError, match=r"shard 1 of 2: .*rows\.safetensors was changed .* remove the folder"):
        opened(bundle, CUTS[2])
    shutil.rmtree(folder)
    opened(bundle, CUTS[2]).store.close()


def test_parts_of_versions_that_are_gone_are_removed(bundle: Path):
    with opened(bundle, CUTS[2], writable=True).store as store:
        for _ in range(4):
            store.compact()
        kept = {path.name.partition("-")[0] for path in (bundle / "shards").iterdir()}
        assert kept == {"v000003", "v000004", "v000005"}  # the first of them went from the bundle after the last was made


def test_an_approximate_index_is_built_for_each_shard(tiny_bundle: Path, tmp_path: Path):
    if faiss_wheel() is None:
        pytest.skip("no FAISS wheel is installed")
    index = Row(name="faiss", factory="IVF4,Flat", nprobe=4)  # all lists: it finds what an exact index does
    bundle = made(tiny_bundle, tmp_path / "bundle", index, memory=False)
    with Retriever.open(bundle).store as one, opened(bundle, (0, 0, 250, LABELS)).store as many:
        whole, sharded = Retriever(one), Retriever(many)
        assert not sharded.exact
        compare(whole, sharded, torch.from_numpy(unit(60, 5)), normalize="all")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_merging_is_the_best_of_all(data: st.DataObject):
    sizes = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=5))
    k = data.draw(st.integers(1, 8))
    values = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5])  # few, so that many are equal
    total = sum(sizes)
    scores = np.array(data.draw(st.lists(values, min_size=total, max_size=total)), dtype=np.float32)
    numbers = data.draw(st.permutations(range(total)))
    parts, start = [], 0
    for size in sizes:
        own = sorted(numbers[start : start + size], key=lambda n: (-scores[n], n))[:k]
        start += size
        pad = k - len(own)
        found = [float(scores[n]) for n in own]
        log_z = torch.logsumexp(torch.tensor([scores[n] for n in numbers[start - size : start]]).double(), 0)
        parts.append(
            TopK(torch.tensor([own + [-1] * pad]), torch.tensor([found + [-torch.inf] * pad]), log_z.reshape(1))
        )  # fmt: skip
    best = sorted(range(total), key=lambda n: (-scores[n], n))[:k]
    answer = merged(parts)
    assert [n for n in answer.ids[0].tolist() if n >= 0] == best
    assert float(answer.log_z[0]) == pytest.approx(float(torch.logsumexp(torch.from_numpy(scores).double(), 0)), abs=1e-12)


def test_patience_says_nothing_of_labels_that_are_all_there(bundle: Path):
    patience = Patience(partial=True)
    found = opened(bundle, CUTS[4]).search_embeddings(torch.from_numpy(unit(2, 5)), 3, normalize="all", patience=patience)
    assert (found.shards, found.missing, found.probabilities() is None) == (4, 0, False)
