"""The clients that others publish, unchanged, against a real process: OpenAI's package and Cohere's."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

DOCUMENTS = ["fast Fourier transform of a signal", "sparse matrices with few entries"]


@pytest.fixture
def openai_client(real):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{real.url}v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def cohere_client(real):
    """Cohere's client of a class; the connections are ours, since it closes none."""
    cohere = pytest.importorskip("cohere")
    with httpx.Client() as connections:
        yield lambda kind: getattr(cohere, kind)("none", base_url=real.url.rstrip("/"), httpx_client=connections)


def test_openai_embeds(openai_client):
    packed = openai_client.embeddings.create(model="tiny", input=DOCUMENTS)  # as base64, which the package unpacks
    plain = openai_client.embeddings.create(model="tiny", input=DOCUMENTS, encoding_format="float", user="somebody")
    assert len(packed.data) == 2 and len(packed.data[0].embedding) == 32
    for one, other in zip(packed.data, plain.data, strict=True):
        assert np.allclose(one.embedding, other.embedding, atol=1e-7)
    assert plain.usage.total_tokens > 0 and plain.model.startswith("tiny@sha256:")
    labels = openai_client.embeddings.create(model="tiny", input="a signal", dimensions=32, extra_body={"input_type": "label"})
    assert len(labels.data) == 1


def test_openai_lists_models(openai_client):
    names = [model.id for model in openai_client.models.list()]
    assert names[0] == "tiny" and openai_client.models.retrieve(names[1]).owned_by == "dexml"


def test_openai_understands_what_is_refused(openai_client):
    import openai

    with pytest.raises(openai.NotFoundError) as unknown:
        openai_client.embeddings.create(model="text-embedding-3-small", input="a")
    assert unknown.value.code == "not_found" and unknown.value.type == "invalid_request_error"
    with pytest.raises(openai.UnprocessableEntityError) as wrong:
        openai_client.embeddings.create(model="tiny", input="a", dimensions=7)
    assert wrong.value.param == "dimensions" and "must be 32" in wrong.value.message
    with pytest.raises(openai.UnprocessableEntityError, match="arrays of tokens are not read"):
        openai_client.embeddings.create(model="tiny", input=[1, 2, 3])


def test_cohere_reranks(cohere_client):
    client = cohere_client("Client")
    answer = client.rerank(model="tiny", query="sparse matrices", documents=DOCUMENTS, top_n=1, return_documents=True)
    assert [(found.index, found.document.text) for found in answer.results] == [(1, DOCUMENTS[1])]
    assert answer.meta.api_version.version == "1" and -1 <= answer.results[0].relevance_score <= 1
    objects = client.rerank(model="tiny", query="sparse matrices", documents=[{"text": text} for text in DOCUMENTS])
    assert [found.index for found in objects.results] == [1, 0]


def test_cohere_reranks_by_its_second_version(cohere_client):
    from cohere.errors import NotFoundError

    client = cohere_client("ClientV2")
    answer = client.rerank(model="tiny", query="sparse matrices", documents=DOCUMENTS)
    assert [found.index for found in answer.results] == [1, 0] and answer.meta.api_version.version == "2"
    with pytest.raises(NotFoundError):
        client.rerank(model="rerank-v3.5", query="a", documents=DOCUMENTS)


def test_a_plain_client_in_cohere_s_and_jina_s_shape(real):
    """Whether or not the packages are there."""
    body = {"model": "tiny", "query": "sparse matrices", "documents": DOCUMENTS, "top_n": 1, "return_documents": True}
    for path in ("v1/rerank", "v2/rerank"):
        answer = httpx.post(f"{real.url}{path}", json=body, headers={"Authorization": "Bearer none"}).raise_for_status().json()
        assert answer["results"][0]["index"] == 1 and answer["results"][0]["document"]["text"] == DOCUMENTS[1]
        assert answer["id"] and answer["usage"]["total_tokens"] > 0
