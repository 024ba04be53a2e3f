"""Every row of INDEXES: recall against brute force, k past the number of labels, ties, and reading back what was saved."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dexml.device import faiss_wheel
from dexml.errors import InputError
from index import INDEXES

SETTINGS = [
    ("exact", {}, 1.0),
    ("exact", {"scan_copy": "none"}, 1.0),
    ("faiss", {}, 1.0),
    ("faiss", {"factory": "IVF16,Flat", "nprobe": 8}, 0.7),
    ("faiss", {"factory": "HNSW32"}, 0.95),
    ("faiss", {"factory": "SQ8"}, 0.95),
    ("faiss", {"factory": "SQ4", "transform": "learned"}, 0.7),
]


def rows(count: int, dimension: int = 48, seed: int = 0) -> torch.Tensor:
    made = torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=1)


@pytest.fixture(params=SETTINGS, ids=lambda setting: "-".join([setting[0], *map(str, setting[1].values())]))
def setting(request):
    if request.param[0] == "faiss" and faiss_wheel() is None:
        pytest.skip("no FAISS wheel is installed")
    return request.param


def brute_force(queries: torch.Tensor, labels: torch.Tensor, k: int) -> np.ndarray:
    scores = (queries.double() @ labels.double().T).numpy()
    return np.lexsort((np.broadcast_to(np.arange(len(labels)), scores.shape), -scores), axis=1)[:, :k]


def test_recall_against_brute_force(setting):
    name, options, least = setting
    labels, queries = rows(2000), rows(50, seed=1)
    index = INDEXES.build(name, options)
    index.build(labels)
    found = index.search(queries, 10, 0.05)
    truth = brute_force(queries, labels, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.ids.tolist(), truth.tolist(), strict=True)])
    assert recall >= least
    assert (found.scores.diff(dim=1) <= 0).all()
    if index.exact:
        assert found.ids.tolist() == truth.tolist()
        expected = (queries[:, None] * labels[found.ids]).sum(-1)
        assert torch.allclose(found.scores, expected, atol=1e-5)
    if found.log_z is not None:
        assert torch.allclose(found.log_z, torch.logsumexp(queries.double() @ labels.double().T / 0.05, 1).float(), atol=1e-4)


def test_more_answers_than_labels_are_padded(setting):
    name, options, _ = setting
    if "IVF" in str(options):
        options = {"factory": "IVF1,Flat"}
    index = INDEXES.build(name, options)
    index.build(rows(40))
    found = index.search(rows(3, seed=1), 45, 0.05)
    assert found.ids.shape == (3, 45)
    assert (found.ids[:, 40:] == -1).all() and (found.scores[:, 40:] == -torch.inf).all()
    assert found.ids[0, :40].sort().values.tolist() == list(range(40))


def test_equal_scores_come_by_ascending_id(setting):
    name, options, _ = setting
    if options.get("factory", "Flat") != "Flat":
        pytest.skip("an approximate structure may not see all twins")
    labels = rows(30)
    labels[[3, 17, 25]] = labels[9].clone()
    index = INDEXES.build(name, options)
    index.build(labels)
    found = index.search(labels[9:10], 4, 0.05)
    assert sorted(found.ids[0].tolist()) == [3, 9, 17, 25]
    # FAISS's products may differ in the last bit between equal rows; our own may not.
    ties = found.scores[0].tolist()
    assert all(a < b for a, b, s, t in zip(found.ids[0], found.ids[0, 1:], ties, ties[1:], strict=False) if s == t)
    if name == "exact":
        assert len(set(ties)) == 1


def test_no_queries_give_no_rows(setting):
    name, options, _ = setting
    index = INDEXES.build(name, options)
    index.build(rows(200))
    assert index.search(rows(0), 5, 0.05).ids.shape == (0, 5)


def test_saved_and_loaded_answers_are_the_same(setting, tmp_path):
    name, options, _ = setting
    labels, queries = rows(500), rows(20, seed=1)
    index = INDEXES.build(name, options)
    index.build(labels)
    index.save(tmp_path)
    again = INDEXES.build(name, options)
    again.load(tmp_path, labels)
    assert torch.equal(again.search(queries, 10, 0.05).ids, index.search(queries, 10, 0.05).ids)
    described = again.describe()
    assert described["name"] == name and described["device"] in ("cpu", "cuda")


@pytest.mark.skipif(faiss_wheel() is None, reason="no FAISS wheel is installed")
@pytest.mark.parametrize("factory", ["Nonsense", "IVF4096,Flat", ""])
def test_a_factory_that_faiss_refuses_is_one_line(factory):
    with pytest.raises(InputError, match=r"index\.factory: FAISS refuses") as caught:
        INDEXES.build("faiss", {"factory": factory}).build(rows(100))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(faiss_wheel() is None, reason="no FAISS wheel is installed")
def test_the_reason_for_the_cpu_is_told():
    described = INDEXES.build("faiss").describe()
    assert described["device"] == "cuda" or "no GPU" in str(described["reason"]) or "no NVIDIA" in str(described["reason"])
    assert "asked for" in str(INDEXES.build("faiss", {"device": "cpu"}).describe()["reason"])


def test_warm_or_not_the_answers_are_the_same(setting, tmp_path):
    name, options, _ = setting
    labels, queries = rows(6000), rows(20, seed=1)
    built = INDEXES.build(name, options)
    built.build(labels)
    built.save(tmp_path)
    cold, warm = INDEXES.build(name, options), INDEXES.build(name, options)
    for index in (cold, warm):
        index.load(tmp_path, labels)
    warm.warm()
    for _ in range(70):  # past the number of searches after which it warms by itself
        found, expected = cold.search(queries, 10, 0.05), warm.search(queries, 10, 0.05)
        assert found.ids.tolist() == expected.ids.tolist()
        assert torch.allclose(found.scores, expected.scores, atol=1e-5)
    assert cold.describe() == warm.describe()


@pytest.mark.parametrize("factory", ["IVF16,Flat", "HNSW32", "SQ8", "IVF16,SQ8"])
def test_a_foreign_or_malformed_file_is_refused_before_faiss_reads_it(factory, tmp_path):
    if faiss_wheel() is None:
        pytest.skip("no FAISS wheel is installed")
    import faiss

    labels = rows(2000)
    index, other = INDEXES.build("faiss", {"factory": factory}), faiss.IndexFlatIP(48)
    index.build(labels)
    index.save(tmp_path)
    path = tmp_path / "index.faiss"
    whole = path.read_bytes()
    INDEXES.build("faiss", {"factory": factory}).load(tmp_path, labels)
    for content, said in [
        (faiss.serialize_index(other).tobytes(), "not an index of the kind"),
        (b"", "not an index of the kind"),
        (b"\x80\x04pickled", "not an index of the kind"),
        (whole[: len(whole) // 2], "FAISS cannot read it"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            INDEXES.build("faiss", {"factory": factory}).load(tmp_path, labels)
    path.write_bytes(whole)
    with pytest.raises(InputError, match="2000 rows of 48, but there are 1999"):
        INDEXES.build("faiss", {"factory": factory}).load(tmp_path, labels[:-1])
