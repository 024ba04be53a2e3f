"""Embeddings, rerank and models: what other services' clients know, on the real bundle and on the stand-in."""

from __future__ import annotations

import base64
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

TEXTS = ["how to do sorting and ordering of arrays", "sparse matrices with few entries"]


def embed(server, texts, **fields):
    reply = server.post({"input": texts, **fields}, "/v1/embeddings")
    assert reply.status == 200, reply.body
    return reply.json


def rows(answer) -> np.ndarray:
    return np.array([item["embedding"] for item in answer["data"]])


def rerank(server, path: str = "/v1/rerank", **body):
    reply = server.post(body, path)
    assert reply.status == 200, reply.body
    return reply.json


def refused(reply, status: int, code: str, pointer: str | None = None) -> None:
    assert (reply.status, reply.json["error"]["code"]) == (status, code), reply.body
    if pointer is not None:
        assert reply.json["errors"][0]["pointer"] == pointer


def test_embeddings_of_queries_find_what_their_texts_find(real):
    queries = rows(embed(real, TEXTS))
    assert queries.shape == (2, 32) and np.allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-6)
    found = real.post({"embeddings": queries.tolist()}).json["results"]
    asked = real.post({"queries": TEXTS}).json["results"]
    for one, other in zip(found, asked, strict=True):
        assert [label["id"] for label in one["labels"]] == [label["id"] for label in other["labels"]]
        assert [label["score"] for label in one["labels"]] == pytest.approx(
            [label["score"] for label in other["labels"]], abs=1e-6
        )


def test_embeddings_of_labels_are_the_rows_that_new_labels_get(tiny_bundle, real):
    from index.retriever import Retriever

    expected = Retriever.open(tiny_bundle).model.embed_labels(TEXTS).numpy()
    assert np.allclose(rows(embed(real, TEXTS, input_type="label")), expected, atol=1e-7)


def test_the_answer_is_openais(real):
    answer = embed(real, TEXTS[0], user="somebody", dimensions=32)
    assert answer["object"] == "list" and len(answer["data"]) == 1
    item = answer["data"][0]
    assert (item["object"], item["index"], item["known"], item["truncated"]) == ("embedding", 0, True, False)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 8
    packed = embed(real, TEXTS, encoding_format="base64")
    numbers = np.stack([np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in packed["data"]])
    assert np.allclose(numbers, rows(embed(real, TEXTS)), atol=1e-8)


def test_a_text_of_unknown_words_is_a_row_of_zeros_and_says_so(real):
    item = embed(real, ["日本語"])["data"][0]
    assert item["known"] is False and not any(item["embedding"])
    assert rerank(real, query="日本語", documents=["a", "b"])["known"] is False


def test_a_model_goes_by_two_names(real):
    listed = real.ask("GET", "/v1/models").json
    names = [card["id"] for card in listed["data"]]
    assert listed["object"] == "list" and names[0] == "tiny" and names[1].startswith("tiny@sha256:")
    for name in names:
        card = real.ask("GET", f"/v1/models/{name}").json
        assert card in listed["data"] and (card["object"], card["dimension"], card["encoder"]) == ("model", 32, "bag")
        assert card["labels"] == 10 and card["max_tokens"] > 0 and card["temperature"] > 0 and card["created"] > 1.7e9
        assert card["training"]["rows"] == 60 and card["training"]["finished"] and "/" not in json.dumps(card["training"])
        assert embed(real, "a", model=name)["model"] == names[1]
        assert rerank(real, query="a", documents=["b"], model=name)["model"] == names[1]
    for reply in (
        real.ask("GET", "/v1/models/gpt-4o"),
        real.post({"input": "a", "model": "gpt-4o"}, "/v1/embeddings"),
        real.post({"query": "a", "documents": ["b"], "model": "tiny@sha256:0"}, "/v1/rerank"),
    ):
        refused(reply, 404, "not_found")


def test_rerank_orders_by_the_cosine_and_ties_by_place(real):
    documents = ["sparse matrices with few entries", "fast Fourier transform of a signal", "sparse matrices with few entries"]
    answer = rerank(real, query="sparse matrices", documents=documents, return_documents=True)
    assert [item["index"] for item in answer["results"]] == [0, 2, 1]
    expected = rows(embed(real, documents, input_type="label")) @ rows(embed(real, ["sparse matrices"]))[0]
    for item in answer["results"]:
        assert item["relevance_score"] == pytest.approx(expected[item["index"]], abs=1e-6)
        assert item["document"] == {"text": documents[item["index"]]} and item["id"] is None
    same = rerank(real, query="sparse matrices", documents=[{"text": text} for text in documents], top_n=1)
    assert [(item["index"], item["document"]) for item in same["results"]] == [(0, None)]
    assert same["meta"]["api_version"]["version"] == "1" and same["usage"]["total_tokens"] > 0
    second = rerank(real, "/v2/rerank", query="sparse matrices", documents=documents, top_n=99)
    assert second["meta"]["api_version"]["version"] == "2" and len(second["results"]) == 3


def test_rerank_of_labels_scores_as_a_search_does(real):
    found = real.post({"queries": ["sparse matrices"]}).json["results"][0]["labels"]
    names = sorted(label["id"] for label in found)
    answer = rerank(real, query="sparse matrices", ids=names, return_documents=True)
    for item, label in zip(answer["results"], found, strict=True):
        assert item["id"] == label["id"] == names[item["index"]] and item["document"]["text"] == label["text"]
        assert item["relevance_score"] == pytest.approx(label["score"], abs=1e-6)
    refused(real.post({"query": "a", "ids": ["svd", "nothing"]}, "/v1/rerank"), 404, "not_found", "/ids/1")


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer"),
    [
        ({}, 422, "schema", "/input"),
        ({"input": []}, 422, "empty", "/input"),
        ({"input": ""}, 422, "empty", "/input/0"),
        ({"input": ["a", " "]}, 422, "empty", "/input/1"),
        ({"input": [1, 2, 3]}, 422, "schema", "/input"),
        ({"input": [[1, 2], [3]]}, 422, "schema", "/input"),
        ({"input": ["a", 1]}, 422, "schema", "/input/1"),
        ({"input": {"text": "a"}}, 422, "schema", "/input"),
        ({"input": "a\ud800"}, 422, "invalid_text", "/input/0"),
        ({"input": "a" * 32_769}, 422, "text_too_long", "/input/0"),
        ({"input": ["a"] * 2049}, 413, "batch_too_large", "/input"),
        ({"input": "a", "dimensions": 63}, 422, "dimension_mismatch", "/dimensions"),
        ({"input": "a", "encoding_format": "hex"}, 422, "schema", "/encoding_format"),
        ({"input": "a", "input_type": "document"}, 422, "schema", "/input_type"),
        ({"input": ["a", "long"], "truncate": False}, 422, "too_many_tokens", "/input/1"),
        ({"input": "a", "model": 3}, 422, "schema", "/model"),
        ({"input": "a", "prompt": "x"}, 422, "schema", "/prompt"),
    ],
)
def test_bad_embeddings_are_refused_with_a_pointer(server, body: dict, status: int, code: str, pointer: str):
    refused(server.post(body, "/v1/embeddings"), status, code, pointer)


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer"),
    [
        ({"documents": ["a"]}, 422, "schema", "/query"),
        ({"query": "a"}, 422, "schema", ""),
        ({"query": "a", "documents": ["a"], "ids": ["torch.topk"]}, 422, "schema", ""),
        ({"query": "a", "documents": []}, 422, "empty", "/documents"),
        ({"query": "a", "ids": []}, 422, "empty", "/ids"),
        ({"query": " ", "documents": ["a"]}, 422, "empty", "/query"),
        ({"query": "a", "documents": ["a", {"text": ""}]}, 422, "empty", "/documents/1"),
        ({"query": "a", "documents": [{"text": "a", "title": "b"}]}, 422, "schema", "/documents/0"),
        ({"query": "a", "documents": [{"text": 1}]}, 422, "schema", "/documents/0"),
        ({"query": "a", "documents": "a"}, 422, "schema", "/documents"),
        ({"query": "a", "documents": ["a"] * 2049}, 413, "batch_too_large", "/documents"),
        ({"query": "a", "documents": ["a"], "top_n": 0}, 422, "schema", "/top_n"),
        ({"query": "a", "documents": ["a", "long"], "truncate": False}, 422, "too_many_tokens", "/documents/1"),
        ({"query": "long", "documents": ["a"], "truncate": False}, 422, "too_many_tokens", "/query"),
        ({"query": "a", "documents": ["a"], "rank_fields": ["text"]}, 422, "schema", "/rank_fields"),
    ],
)
def test_bad_reranks_are_refused_with_a_pointer(server, body: dict, status: int, code: str, pointer: str):
    refused(server.post(body, "/v1/rerank"), status, code, pointer)


def ready(app):
    assert app.extensions["dexml"].worker.wait_until_loaded(10)
    return app.extensions["dexml"].worker


def test_many_inputs_are_cut_in_parts_and_come_back_in_order(make_app, stand_in):
    retriever = stand_in.StandIn()
    app = make_app(retriever)
    ready(app)
    retriever.batches.clear()
    texts = [f"text {number}" for number in range(2048)]
    reply = app.test_client().post("/v1/embeddings", json={"input": texts}).json
    assert [item["index"] for item in reply["data"]] == list(range(2048))
    expected = np.stack([stand_in.embed(text).numpy() for text in texts])
    assert np.allclose(rows(reply), expected, atol=1e-8)
    assert retriever.batches == [64] * 32 and reply["usage"]["total_tokens"] == 4096
    assert retriever.asked == {"queries": texts, "labels": [], "ids": []}
    app.test_client().post("/v1/embeddings", json={"input": ["a", "b"], "input_type": "label"})
    assert retriever.asked["labels"][-2:] == ["a", "b"] and retriever.asked["queries"] == texts
    retriever.batches.clear()
    ranked = app.test_client().post("/v1/rerank", json={"query": "text 70", "documents": texts}).json
    assert retriever.batches == [64] * 32 + [1]
    scores = np.einsum("nd,d->n", expected, expected[70], dtype=np.float64)
    assert [item["index"] for item in ranked["results"]] == sorted(range(2048), key=lambda n: (-round(float(scores[n]), 7), n))


def test_embeddings_and_reranks_travel_together(make_app, stand_in):
    retriever = stand_in.StandIn()
    app = make_app(retriever)
    ready(app)
    retriever.batches.clear()
    blocker = threading.Thread(target=app.test_client().post, args=("/v1/search",), kwargs={"json": {"queries": ["slow 300"]}})
    blocker.start()
    time.sleep(0.1)
    asks = [("/v1/embeddings", {"input": f"a {number}", "input_type": "label"}) for number in range(4)]
    asks += [("/v1/rerank", {"query": f"a {number}", "documents": ["a 1", f"a {number}"]}) for number in range(2, 6)]
    asks += [("/v1/rerank", {"query": "x", "ids": ["torch.topk"]}), ("/v1/embeddings", {"input": ["a 0", "a 1"]})]
    with ThreadPoolExecutor(len(asks)) as pool:
        replies = [reply.json for reply in pool.map(lambda ask: app.test_client().post(ask[0], json=ask[1]), asks)]
    blocker.join()
    assert retriever.batches == [1, 20], "of the blocker, and of all the others"
    for number, reply in enumerate(replies[:4]):
        assert np.allclose(rows(reply)[0], stand_in.embed(f"a {number}").numpy(), atol=1e-8)
    for reply in replies[4:8]:
        assert reply["results"][0]["index"] == 1 and reply["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-6)
    assert replies[8]["results"][0]["id"] == "torch.topk" and len(replies[9]["data"]) == 2


def test_searches_get_in_between_the_parts_of_a_large_request(make_app):
    app = make_app()
    worker = ready(app)
    texts = ["slow 100" if number % 64 == 0 else "a" for number in range(12 * 64)]
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(app.test_client().post, "/v1/embeddings", json={"input": texts})
        time.sleep(0.15)
        start = time.monotonic()
        assert app.test_client().post("/v1/search", json={"queries": ["sort"]}).status_code == 200
        waited = time.monotonic() - start
        assert not large.done() and waited < 0.5
        assert large.result().status_code == 200 and worker.inflight == 0


def test_a_request_that_was_let_in_is_not_turned_away_half_done(make_app):
    app = make_app(max_inflight=1)
    worker = ready(app)
    texts = ["slow 50" if number % 64 == 0 else "a" for number in range(6 * 64)]
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(app.test_client().post, "/v1/embeddings", json={"input": texts})
        time.sleep(0.1)
        statuses = set()
        while not large.done():
            statuses.add(app.test_client().post("/v1/search", json={"queries": ["sort"]}).status_code)
            time.sleep(0.005)  # refusals cost next to nothing: spinning on them would keep the interpreter from all others
        worker.stop()
        assert large.result().status_code == 200 and statuses <= {200, 429}


def test_a_large_request_has_more_time_and_one_model(make_app, stand_in):
    class Changing(stand_in.StandIn):
        """Another model is activated during the first large request."""

        def embed(self, *texts, **more):
            from dataclasses import replace

            found = super().embed(*texts, **more)
            return replace(found, model="stand-in@sha256:ba9876543210") if len(self.batches) > self.swap else found

    retriever = Changing()
    retriever.swap = len(retriever.batches) + 10**6
    app = make_app(retriever, deadline_ms=200)
    ready(app)
    texts = ["slow 150" if number % 64 == 0 else "a" for number in range(3 * 64)]
    assert app.test_client().post("/v1/embeddings", json={"input": texts}).status_code == 200
    refused_late = app.test_client().post("/v1/embeddings", json={"input": "slow 400"})
    assert refused_late.status_code == 504
    retriever.batches.clear()
    retriever.swap = 1
    reply = app.test_client().post("/v1/embeddings", json={"input": ["a"] * 100}).json
    assert reply["model"] == "stand-in@sha256:ba9876543210" and retriever.batches == [64, 36, 64, 36]
