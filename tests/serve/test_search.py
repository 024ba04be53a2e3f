"""What `POST /v1/search` and its neighbours answer when all is well."""

from __future__ import annotations

import json
import math
import re

import pytest

TEXTS = ["sort an array", "singular values of a matrix", "名前 🎉", "cluster points"]


def labels(reply, row: int = 0) -> list[dict]:
    assert reply.status == 200, reply.body
    return reply.json["results"][row]["labels"]


def test_the_answer_has_the_documented_shape(server):
    from serve.schemas import SearchResponse

    reply = server.post({"queries": TEXTS, "top_k": 3})
    document = reply.json
    SearchResponse.model_validate(document, strict=True, extra="forbid")
    assert [result["query_index"] for result in document["results"]] == [0, 1, 2, 3]
    first = document["results"][0]
    assert first["returned"] == len(first["labels"]) == 3 and first["exact"] is True
    assert first["labels"][0]["id"] == "numpy.sort"
    assert first["normalizer"] == {"kind": "topk", "log_z": pytest.approx(first["normalizer"]["log_z"]), "labels": 10}
    assert document["model"] == "stand-in@sha256:0123456789ab" and document["index_version"] == "v000001"
    assert document["shards"] == {"total": 1, "ok": 1, "failed": 0} and document["partial"] is False
    assert list(document["timing_ms"]) == ["queue", "encode", "retrieve", "rescore", "total"]
    assert document["usage"]["prompt_tokens"] == document["usage"]["total_tokens"] > 0


def test_http_says_what_the_retriever_says(server, stand_in):
    retriever = stand_in.StandIn()
    found = retriever.search(TEXTS, 10)
    chances = found.probabilities()
    for row, result in enumerate(server.post({"queries": TEXTS, "top_k": 10}).json["results"]):
        assert [label["id"] for label in result["labels"]] == [retriever.labels.ids[i] for i in found.topk.ids[row]]
        for place, label in enumerate(result["labels"]):
            assert abs(label["score"] - float(found.topk.scores[row, place])) <= 1e-6
            assert abs(label["probability"] - float(chances[row, place])) <= 1e-6


def test_a_real_bundle_over_http_is_its_retriever(real, tiny_bundle):
    from index.retriever import Retriever

    retriever = Retriever.open(tiny_bundle)
    texts = ["how to sort an array", "random numbers please", "fourier transform of sparse signals"]
    for normalize in ("topk", "all", "sigmoid", "none"):
        found = retriever.search(texts, 5, normalize=normalize)
        chances = found.probabilities()
        reply = real.post({"queries": texts, "top_k": 5, "normalize": normalize})
        for row in range(3):
            answers = labels(reply, row)
            assert [answer["id"] for answer in answers] == [retriever.labels.ids[i] for i in found.topk.ids[row].tolist()]
            for place, answer in enumerate(answers):
                assert abs(answer["score"] - float(found.topk.scores[row, place])) <= 1e-6
                if chances is None:
                    assert answer["probability"] is None
                else:
                    assert abs(answer["probability"] - float(chances[row, place])) <= 1e-6
    info = real.ask("GET", "/v1/info").json
    assert info["model"] == retriever.describe()["model"] and info["labels"] == 10 and info["dimension"] == 32


def test_embeddings_are_taken_as_directions(server, stand_in):
    row = stand_in.embed("sort an array").double()
    expected = labels(server.post({"queries": ["sort an array"]}))
    for scale in (1.0, 1e-200, 1e200):
        found = labels(server.post({"embeddings": [(row * scale).tolist()]}))
        assert [label["id"] for label in found] == [label["id"] for label in expected]
        assert all(abs(a["score"] - b["score"]) <= 1e-6 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("normalize", ["topk", "all"])
def test_probabilities_sum_to_one_over_what_the_normaliser_names(server, normalize: str):
    reply = server.post({"queries": TEXTS, "top_k": 1000, "normalize": normalize})
    for row, result in enumerate(reply.json["results"]):
        assert result["normalizer"]["kind"] == normalize and result["normalizer"]["labels"] == result["returned"] == 10
        assert abs(sum(label["probability"] for label in labels(reply, row)) - 1) <= 1e-5


def test_temperature_and_log_z_explain_the_probability(server):
    result = server.post({"queries": ["sort an array"], "temperature": 0.2}).json["results"][0]
    top = result["labels"][0]
    assert top["probability"] == pytest.approx(math.exp(top["score"] / 0.2 - result["normalizer"]["log_z"]), abs=1e-5)


def test_none_and_sigmoid(server):
    none = server.post({"queries": ["sort"], "normalize": "none"}).json["results"][0]
    assert none["normalizer"] == {"kind": "none", "log_z": None, "labels": None}
    assert {label["probability"] for label in none["labels"]} == {None}
    sigmoid = server.post({"queries": ["sort"], "normalize": "sigmoid", "temperature": 0.5}).json["results"][0]
    for label in sigmoid["labels"]:
        assert label["probability"] == pytest.approx(1 / (1 + math.exp(-label["score"] / 0.5)), abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-4, 100])
def test_no_number_is_infinite_at_the_ends_of_the_range(server, temperature: float):
    for normalize in ("topk", "all", "sigmoid", "none"):
        reply = server.post({"queries": TEXTS, "temperature": temperature, "normalize": normalize})
        json.loads(reply.body, parse_constant=pytest.fail)
        assert labels(reply)


def test_excluded_and_low_labels_leave_without_moving_the_others(server):
    everything = labels(server.post({"queries": ["sort an array"], "top_k": 3}))
    without = labels(server.post({"queries": ["sort an array"], "top_k": 2, "exclude_ids": ["numpy.sort", "unknown"]}))
    assert without == everything[1:]
    floor = everything[1]["score"] - 1e-4
    high = server.post({"queries": ["sort an array"], "top_k": 10, "min_score": floor}).json["results"][0]
    assert high["labels"] == everything[:2] and high["returned"] == 2


@pytest.mark.parametrize("normalize", ["topk", "all", "sigmoid", "none"])
def test_a_text_without_a_known_word_has_no_answers(server, normalize: str):
    texts = ["sort an array", "gibberish", "cluster points"]
    fields = {"top_k": 3, "exclude_ids": ["numpy.mean", "hostile"], "min_score": -1.0, "normalize": normalize}
    known, unknown, other = server.post({"queries": texts, **fields}).json["results"]
    assert (known["known"], unknown["known"], other["known"]) == (True, False, True)
    assert known["returned"] == other["returned"] == 3 and unknown["returned"] == 0 and unknown["labels"] == []
    assert unknown["normalizer"] == {"kind": normalize, "log_z": None, "labels": None}
    alone = labels(server.post({"queries": texts[:1], **fields}))
    assert [label["id"] for label in alone] == [label["id"] for label in known["labels"]]


def test_fields_that_are_not_wanted_are_null_not_missing(server):
    answers = labels(server.post({"queries": ["sort"], "include": []}))
    assert all(set(answer) == {"id", "score", "rank_score", "probability", "text", "why"} for answer in answers)
    assert all(answer["probability"] is None and answer["text"] is None for answer in answers)


def test_a_cut_text_is_said_to_be_cut(server):
    results = server.post({"queries": ["long text", "short text"]}).json["results"]
    assert [result["truncated"] for result in results] == [True, False]


def test_labels_of_any_script_survive(server, stand_in):
    texts = {label["id"]: label["text"] for label in labels(server.post({"queries": ["名前"], "top_k": 10}))}
    assert texts == dict(stand_in.LABELS)


def test_a_request_id_is_echoed_when_it_is_one(server):
    reply = server.post({"queries": ["a"]}, **{"X-Request-ID": "abc-1.2_3"})
    assert reply.headers["X-Request-ID"] == reply.json["id"] == "abc-1.2_3"
    for bad in ("a b", "x" * 129, "é".encode().decode("latin-1")):
        assert re.fullmatch(r"req_[0-9a-f]{32}", server.post({"queries": ["a"]}, **{"X-Request-ID": bad}).json["id"])


def test_server_timing_and_security_headers(server):
    for path in ("/", "/static/app.js", "/v1/info", "/nothing"):
        headers = server.ask("GET", path).headers
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
        assert "total;dur=" in headers["Server-Timing"] and headers["X-Request-ID"]
    timing = server.post({"queries": ["a"]}).headers["Server-Timing"]
    assert [part.split(";")[0] for part in timing.split(", ")] == ["queue", "encode", "retrieve", "rescore", "total"]


def test_probes(server):
    assert server.ask("GET", "/livez").json == server.ask("GET", "/v2/health/live").json == {"status": "alive"}
    for path in ("/readyz", "/health", "/v2/health/ready"):
        assert server.ask("GET", path).json == {"status": "ready"}


def test_the_page_has_nothing_inline(server):
    page = server.ask("GET", "/")
    assert page.status == 200 and page.headers["Content-Type"].startswith("text/html")
    assert b"<style" not in page.body and b" style=" not in page.body and b"onclick" not in page.body
    assert re.findall(rb"<script(?![^>]* src=)", page.body) == []
    assert not re.search(rb"""(src|href)=["']?(https?:)?//""", page.body)


def test_openapi_describes_what_is_answered(server):
    spec = server.ask("GET", "/openapi.json").json
    assert spec["openapi"].startswith("3.1")
    search = spec["paths"]["/v1/search"]["post"]
    assert {"200", "400", "413", "415", "422", "429", "500", "503", "504"} <= set(search["responses"])
    for reply in search["responses"].values():
        for media in reply["content"].values():
            assert media["schema"]["$ref"].removeprefix("#/components/schemas/") in spec["components"]["schemas"]
    assert "SearchRequest" in spec["components"]["schemas"]


def test_diversity_changes_the_order_and_nothing_else(real):
    ask = {"queries": ["sorting of arrays", "sparse matrices of images"], "top_k": 10}
    plain, diverse = labels(real.post(ask), 1), labels(real.post({**ask, "diversity": 0.02}), 1)
    assert [label["id"] for label in diverse] != [label["id"] for label in plain]
    kept = {label["id"]: (label["score"], label["probability"]) for label in plain}
    assert {label["id"]: (label["score"], label["probability"]) for label in diverse} == kept
    assert all(label["rank_score"] is None for label in plain)
    ranks = [label["rank_score"] for label in diverse]
    assert ranks == sorted(ranks, reverse=True) and ranks[0] == pytest.approx(diverse[0]["score"], abs=1e-6)
    assert [label["id"] for label in labels(real.post({**ask, "diversity": 1000.0}), 1)] == [label["id"] for label in plain]


def test_labels_left_out_push_no_other_away(real):
    ask = {"queries": ["sorting of arrays"], "top_k": 4, "diversity": 0.02}
    first = labels(real.post(ask))[0]["id"]
    without = labels(real.post({**ask, "exclude_ids": [first]}))
    assert len(without) == 4 and first not in [label["id"] for label in without]
    assert without[0]["rank_score"] == pytest.approx(without[0]["score"], abs=1e-6)
    scores = sorted(label["score"] for label in labels(real.post({**ask, "top_k": 10})))
    high = labels(real.post({**ask, "min_score": scores[-4]}))
    assert len(high) == 4 and min(label["score"] for label in high) >= scores[-4], "low labels take no place"
