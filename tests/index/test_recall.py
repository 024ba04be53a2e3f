"""Training queries that lift labels: every answer against a brute force in float64, whatever was added, deleted, compacted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dexml import versions
from dexml.bundle import Bundle, extend, publish
from dexml.device import faiss_wheel
from dexml.errors import InputError
from dexml.label_log import Change
from dexml.manifest import MemoryFacts
from dexml.memory import Memory, chosen
from dexml.types import LabelTable, Positives
from index import INDEXES
from index.recall import Recall
from index.recovery import recover
from index.retriever import Found, Retriever
from index.store import Store, activate

WIDTH, LABELS, QUERIES = 32, 400, 300
FACTS = MemoryFacts(queries=QUERIES, texts=True, weight=0.7, temperature=0.08, neighbours=12)


def unit(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def memory() -> Memory:
    """Queries of one to six labels each; the first 20 labels have many, and the last 50 none."""
    random = np.random.default_rng(1)
    rows = [
        [*random.choice(20, random.integers(1, 3)), *random.choice(LABELS - 50, random.integers(0, 5))] for _ in range(QUERIES)
    ]
    texts = tuple(f"query {number}\u2028\n" for number in range(QUERIES))
    return Memory(torch.from_numpy(unit(QUERIES, 2)), Positives.from_rows(rows, LABELS), texts)


@pytest.fixture(scope="module", params=["exact", "faiss"])
def published(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "faiss" and faiss_wheel() is None:
        pytest.skip("no FAISS wheel is installed")
    old = Bundle.open(tiny_bundle)
    index = INDEXES.build(request.param, {})
    index.build(torch.from_numpy(unit(LABELS, 0)))
    facts = {key: getattr(old.manifest, key) for key in ("name", "temperature", "rerank", "data", "training")}
    facts |= {"index": {"name": request.param}, "memory": FACTS}
    ids = tuple(f"label {number}" for number in range(LABELS))
    root = tmp_path_factory.mktemp("recall") / "bundle"
    counts = np.ones(LABELS, dtype=np.int64)
    publish(root, old.model(), LabelTable(ids, ids), counts, torch.from_numpy(unit(LABELS, 0)), facts, index.save, memory())
    return root


@pytest.fixture
def bundle(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "bundle"))


def model() -> dict[str, np.ndarray]:
    """The labels as they were published."""
    return dict(zip((f"label {number}" for number in range(LABELS)), unit(LABELS, 0), strict=True))


def truth(live: dict[str, np.ndarray], replaced: set[str], query: np.ndarray, tau: float) -> dict[str, float]:
    """Return each live label's score by the formula, in float64, label for label."""
    kept, scores = memory(), {name: float(row.astype(np.float64) @ query) for name, row in live.items()}
    cosines = kept.rows.double().numpy() @ query
    near = np.argsort(-cosines, kind="stable")[: FACTS.neighbours]
    shares = np.exp(cosines[near] / FACTS.temperature)
    mass = dict.fromkeys(live, 0.0)
    for number, share in zip(near, shares / shares.sum(), strict=True):
        names = [f"label {label}" for label in kept.positives.row(int(number))]
        own = [name for name in names if name in live and name not in replaced]
        for name in own:
            mass[name] += share / len(own)
    z = sum(np.exp(score / tau) for score in sorted(scores.values())[-200:])
    return {name: tau * np.log(np.exp(score / tau) + FACTS.weight * z * mass[name]) for name, score in scores.items()}


def compare(retriever: Retriever, live: dict[str, np.ndarray], replaced: set[str], k: int = 50) -> None:
    queries, tau = unit(6, 3), retriever.temperature
    for temperature in (tau, 0.02):
        of_all = retriever.search_embeddings(torch.from_numpy(queries), k, normalize="all", temperature=temperature)
        of_candidates = retriever.search_embeddings(torch.from_numpy(queries), k, temperature=temperature)
        chances = of_all.probabilities()
        for row, query in enumerate(queries.astype(np.float64)):
            scores = truth(live, replaced, query, tau)
            best = sorted(scores, key=lambda name: -scores[name])[:k]
            for found in (of_all, of_candidates):
                assert names(found, row) == best
                assert found.topk.scores[row].tolist() == pytest.approx([scores[name] for name in best], abs=1e-5)
            total = sum(np.exp(score / temperature) for score in scores.values())
            expected = [np.exp(scores[name] / temperature) / total for name in best]
            assert chances[row].tolist() == pytest.approx(expected, rel=2e-3)


def names(found: Found, row: int) -> list[str]:
    return [found.labels.ids[number] for number in found.topk.ids[row].tolist() if number >= 0]


def test_answers_are_the_formulas(bundle: Path):
    retriever = Retriever.open(bundle)
    compare(retriever, model(), set())
    lifted = retriever.search_embeddings(torch.from_numpy(unit(6, 3)), 50)
    assert max(lifted.rescored) > 200, "labels that the index did not offer are among the candidates"


def test_the_probabilities_are_the_mixture_of_labels_and_memory(bundle: Path):
    """(softmax + λ·m) / (1 + λ) over the candidates, at the bundle's own temperature, where Z runs over all of them."""
    retriever = Retriever.open(bundle)
    few = {name: row for name, row in model().items() if int(name.split()[1]) < 150}
    with Store.open(bundle, writable=True) as store:
        store.write([Change(name) for name in model() if name not in few])
    retriever = Retriever.open(bundle)
    query = torch.from_numpy(unit(1, 3))
    found = retriever.search_embeddings(query, 150, normalize="all")
    plain = torch.softmax(query.double() @ torch.from_numpy(np.stack(list(few.values()))).double().T / retriever.temperature, 1)
    said = retriever.store.live.recall.evidence(query, retriever.index, FACTS.neighbours, FACTS.temperature)
    mass = said.of(np.arange(150)[None])
    assert mass.sum() == pytest.approx(1)
    mixed = (plain.numpy() + FACTS.weight * mass) / (1 + FACTS.weight)
    probabilities = found.probabilities()[0].numpy()
    assert probabilities.sum() == pytest.approx(1, abs=1e-4)
    assert probabilities == pytest.approx(mixed[0, found.topk.ids[0].numpy()], rel=2e-3)


def test_deleted_replaced_and_added_labels_before_and_after_compaction(bundle: Path):
    """A deleted label is never lifted back; a replaced or added one has no training queries; compaction changes no answer."""
    live, replaced, fresh = model(), {f"label {number}" for number in range(4, 8)}, iter(unit(40, 5))
    retriever = Retriever.open(bundle, writable=True)
    with retriever.store as store:
        changes = [Change(f"label {number}") for number in (0, 1, 2, 3, 100, 101)]
        changes += [Change(name, "another text", next(fresh)) for name in sorted(replaced)]
        changes += [Change(f"new {number}", "text", next(fresh)) for number in range(20)]
        store.write(changes)
        for change in changes:
            live.pop(change.id, None)
            if change.row is not None:
                live[change.id] = change.row
        compare(retriever, live, replaced)
        store.compact()
        compare(retriever, live, replaced)
        store.write([Change("label 9"), Change("new 0")])
        del live["label 9"], live["new 0"]
        compare(retriever, live, replaced)
        store.compact()
    compare(Retriever.open(bundle), live, replaced)
    kept = Bundle.open(bundle).memory
    assert len(kept) == QUERIES and torch.equal(kept.rows, memory().rows) and kept.texts == memory().texts
    counts = dict(zip(Bundle.open(bundle).labels.ids, kept.positives.counts().tolist(), strict=True))
    assert counts["label 10"] == memory().positives.counts()[10] > 0
    assert counts["label 4"] == counts["new 1"] == 0


def test_a_label_added_to_a_row_beyond_the_memorys_takes_no_other_querys_mass(bundle: Path):
    retriever, rows = Retriever.open(bundle, writable=True), unit(40, 6)
    with retriever.store as store:
        store.write([Change(f"new {number}", "text", row) for number, row in enumerate(rows)])
        compare(retriever, model() | {f"new {number}": row for number, row in enumerate(rows)}, set(), k=400)


def test_nothing_is_said_where_every_label_of_the_memory_is_gone(bundle: Path):
    retriever = Retriever.open(bundle, writable=True)
    with retriever.store as store:
        store.write([Change(name) for name in list(model())[: LABELS - 50]])
        live = {name: row for name, row in model().items() if int(name.split()[1]) >= LABELS - 50}
        compare(retriever, live, set(), k=60)
        store.write([Change(name) for name in live])
        assert (retriever.search_embeddings(torch.from_numpy(unit(2, 3)), 5, why=True).topk.ids == -1).all()


def test_an_answer_depends_on_neither_its_neighbours_nor_how_many_are_asked_for(bundle: Path):
    retriever, queries = Retriever.open(bundle), torch.from_numpy(unit(20, 4))
    together = retriever.search_embeddings(queries, 30, why=True)
    for row in range(20):
        for k, candidates in ((30, None), (30, 30), (7, None), (7, 350)):
            alone = retriever.search_embeddings(queries[row : row + 1], k, candidates=candidates, why=True)
            assert alone.topk.ids[0].tolist() == together.topk.ids[row, :k].tolist()
            assert alone.topk.scores[0].tolist() == pytest.approx(together.topk.scores[row, :k].tolist(), abs=1e-6)
            for one, other in zip(alone.why[0], together.why[row][:k], strict=True):
                assert [reason.text for reason in one] == [reason.text for reason in other]


def test_reasons_are_the_nearest_training_queries_that_have_the_label(bundle: Path):
    retriever, queries, kept = Retriever.open(bundle), unit(5, 3), memory()
    found = retriever.search_embeddings(torch.from_numpy(queries), 100, why=True)
    lists = 0
    for row, query in enumerate(queries):
        cosines = kept.rows.numpy() @ query
        for label, reasons in zip(found.topk.ids[row].tolist(), found.why[row], strict=True):
            own = [number for number in np.argsort(-cosines) if label in kept.positives.row(int(number))][:3]
            assert [reason.text for reason in reasons] == [kept.texts[number] for number in own]
            assert [reason.similarity for reason in reasons] == pytest.approx(cosines[own].tolist(), abs=1e-6)
            lists += len(reasons) == 3
    assert lists > 5
    assert retriever.search_embeddings(torch.from_numpy(queries), 10).why == ()
    assert retriever.describe()["memory"] == QUERIES


def test_with_no_weight_answers_are_the_labels_own_and_reasons_are_told_all_the_same(bundle: Path):
    queries = torch.from_numpy(unit(5, 3))
    extend(bundle, lambda folder: None, {"memory": FACTS.model_copy(update={"weight": 0.0})})
    silent = Retriever.open(bundle).search_embeddings(queries, 20, normalize="all", why=True)
    assert any(silent.why[0])
    extend(bundle, lambda folder: shutil.rmtree(folder / "memory"), {"memory": None})
    without = Retriever.open(bundle)
    plain = without.search_embeddings(queries, 20, normalize="all")
    for field in ("ids", "scores", "log_z"):
        assert torch.equal(getattr(plain.topk, field), getattr(silent.topk, field))
    assert without.describe()["memory"] == 0 and without.bundle.memory is None
    with pytest.raises(InputError, match="keeps no texts"):
        without.search_embeddings(queries, 20, why=True)


def test_a_damaged_file_is_named(bundle: Path):
    room = versions.current(bundle)[0] / "memory"
    assert sorted(path.name for path in room.iterdir()) == ["positives.safetensors", "queries.safetensors", "texts.jsonl"]
    for path in room.iterdir():
        path.chmod(0o644)
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(InputError, match=f"memory/{path.name} was changed"):
            Store.open(bundle)
        path.unlink()
        with pytest.raises(InputError, match=f"memory/{path.name} is missing"):
            Store.open(bundle)
        path.write_bytes(content)
    Store.open(bundle)


def test_a_memory_is_passed_on_by_a_version_taken_up_again_and_by_a_recovery(bundle: Path):
    with Store.open(bundle, writable=True) as store:
        store.write([Change("label 0")])
        store.compact()
    compacted = Bundle.open(bundle).memory.positives
    broken = versions.current(bundle)[0] / "labels.jsonl"
    broken.chmod(0o644)
    broken.write_bytes(b"x" + broken.read_bytes()[1:])
    recover(bundle)
    mended = Bundle.open(bundle)
    assert np.array_equal(mended.memory.positives.indices, compacted.indices) and mended.manifest.memory == FACTS
    name = mended.root.name
    activate(bundle, name)
    assert np.array_equal(Bundle.open(bundle).memory.positives.indptr, compacted.indptr)


def test_a_version_whose_memory_is_new_is_not_made_anew_without_it(bundle: Path):
    extend(
        bundle,
        lambda folder: (folder / "memory" / "texts.jsonl").unlink(),
        {"memory": FACTS.model_copy(update={"texts": False})},
    )
    broken = versions.current(bundle)[0] / "labels.jsonl"
    broken.chmod(0o644)
    broken.write_bytes(b"x" + broken.read_bytes()[1:])
    with pytest.raises(InputError, match=r"its memory is not that of v000001.*--activate v000001"):
        recover(bundle)


def test_what_is_kept_of_many_is_drawn_once(bundle: Path):
    rows = chosen(1000, 30, 7)
    assert len(np.unique(rows)) == 30 and (np.diff(rows) > 0).all() and rows.max() < 1000
    assert np.array_equal(rows, chosen(1000, 30, 7)) and not np.array_equal(rows, chosen(1000, 30, 8))
    assert chosen(5, 30, 7).tolist() == [0, 1, 2, 3, 4]


def test_a_text_is_named_once():
    kept = memory()
    twice = Memory(kept.rows, kept.positives, tuple(text[:7] for text in kept.texts))  # "query 1" for 1, 10 to 19, 100, …
    found = Recall(twice, FACTS, 0.05).why(torch.from_numpy(unit(3, 3)), torch.arange(20).repeat(3, 1))
    named = [[reason.text for reason in reasons] for row in found for reasons in row]
    assert all(len(set(texts)) == len(texts) == 3 for texts in named)
