"""The routes that clients of other services know: embeddings and models as OpenAI has them, rerank as Cohere and Jina do."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from flask import Response, g, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel

from dexml.types import Float32Array
from index.embedded import Embedded
from serve.api import ANSWERS, REFUSALS, answer, reads_json, refusals, service
from serve.compat_schemas import EmbeddingsRequest, EmbeddingsResponse, ModelCard, ModelList, RerankRequest, RerankResponse
from serve.embeddings import parts_of
from serve.errors import Fault, Problem
from serve.tickets import Encode, Serving

compat_api = APIBlueprint("compat", __name__)
TAG = Tag(name="compatible", description="In the shapes of other services' APIs")


class ModelPath(BaseModel):
    """A name of /v1/models."""

    model_id: str


@compat_api.post(
    "/v1/embeddings",
    summary="Texts as unit rows, as OpenAI's API gives them",
    tags=[TAG],
    responses={200: EmbeddingsResponse, **refusals(*REFUSALS)},
)
@reads_json
def embeddings(body: EmbeddingsRequest) -> Response:
    """Return a unit row for each text: the inner product of a query's and a label's is the score that a search gives."""
    serving = service().worker.check_ready()
    _check_model(body.model, serving)
    if body.dimensions not in (None, serving.dimension):
        message = f"must be {serving.dimension}, the model's, or absent"
        raise Problem("dimension_mismatch", faults=[Fault("/dimensions", "dimension_mismatch", message)])
    texts = tuple(body.input)
    found = _embedded(Encode(queries=texts) if body.input_type == "query" else Encode(labels=texts))
    rows, tokens = (found.queries, found.query_tokens) if body.input_type == "query" else (found.labels, found.label_tokens)
    if not body.truncate:
        _check_length(tokens, found.max_tokens, "/input/{}")
    data = [
        {
            "object": "embedding",
            "index": number,
            "embedding": row,
            "known": bool(known),
            "truncated": tokens[number] > found.max_tokens,
        }
        for number, (row, known) in enumerate(zip(_shown(rows, body.encoding_format), map(np.any, rows), strict=True))
    ]
    return answer({"object": "list", "data": data, "model": found.model, "usage": _usage(tokens)})


@compat_api.post(
    "/v1/rerank",
    summary="Documents in the order of a query, as Cohere's and Jina's APIs give them",
    tags=[TAG],
    responses={200: RerankResponse, **refusals(*REFUSALS)},
)
@compat_api.post(
    "/v2/rerank",
    endpoint="rerank_v2",
    summary="The same where Cohere's second version has it",
    tags=[TAG],
    responses={200: RerankResponse, **refusals(*REFUSALS)},
)
@reads_json
def rerank(body: RerankRequest) -> Response:
    """Return the exact cosine of the query with each document, or with each label of `ids`, best first."""
    _check_model(body.model, service().worker.check_ready())
    documents, ids = tuple(body.documents or ()), tuple(body.ids or ())
    found = _embedded(Encode((body.query,), documents, ids))
    for number, text in enumerate(found.texts):
        if text is None:
            raise Problem("not_found", faults=[Fault(f"/ids/{number}", "not_found", "names no label")])
    if not body.truncate:
        _check_length(found.query_tokens, found.max_tokens, "/query")
        _check_length(found.label_tokens, found.max_tokens, "/documents/{}")
    rows, texts = (found.labels, documents) if body.ids is None else (found.stored, found.texts)
    query = found.queries[0]
    # As a sum in float64, without BLAS, whose threads belong to the owner of the model.
    scores = [round(score, 7) for score in np.einsum("nd,d->n", rows, query, dtype=np.float64).tolist()]
    order = sorted(range(len(scores)), key=lambda number: (-scores[number], number))[: body.top_n]
    results = [
        {
            "index": number,
            "relevance_score": scores[number],
            "document": {"text": texts[number]} if body.return_documents else None,
            "id": ids[number] if ids else None,
        }
        for number in order
    ]
    document = {
        "id": g.request_id,
        "model": found.model,
        "results": results,
        "known": bool(query.any()),
        "meta": {"api_version": {"version": "2" if request.path.startswith("/v2") else "1"}},
        "usage": _usage((*found.query_tokens, *found.label_tokens)),
    }
    return answer(document)


@compat_api.get("/v1/models", summary="The models being served", tags=[TAG], responses={200: ModelList, **refusals(*ANSWERS)})
def models() -> Response:
    """Return the model by its two names: that of its bundle, and that of this very encoder."""
    serving = service().worker.check_ready()
    return answer({"object": "list", "data": [_card(name, serving) for name in _names(serving)]})


@compat_api.get(
    "/v1/models/<path:model_id>",
    summary="A model being served",
    tags=[TAG],
    responses={200: ModelCard, **refusals(*ANSWERS, 404)},
)
def model(path: ModelPath) -> Response:
    """Return what the model says of itself."""
    serving = service().worker.check_ready()
    _check_model(path.model_id, serving)
    return answer(_card(path.model_id, serving))


def _names(serving: Serving) -> tuple[str, str]:
    """Return the name of the bundle, and that with the checksum of its encoder."""
    exact = str(serving.info["model"])
    return exact.rpartition("@sha256:")[0], exact


def _check_model(name: str | None, serving: Serving) -> None:
    if name is not None and name not in (names := _names(serving)):
        raise Problem("not_found", f"the model being served is {names[0]}")


def _check_length(tokens: Sequence[int], most: int, pointer: str) -> None:
    for number, count in enumerate(tokens):
        if count > most:
            message = f"has {count} tokens, more than the {most} that the model reads"
            raise Problem("too_many_tokens", faults=[Fault(pointer.format(number), "too_many_tokens", message)])


def _card(name: str, serving: Serving) -> dict[str, Any]:
    about = serving.info
    shared = ("encoder", "dimension", "max_tokens", "temperature", "labels", "training")
    created = int(datetime.fromisoformat(about["created"]).timestamp())
    return {"object": "model", "id": name, "created": created, "owned_by": "dexml", **{key: about[key] for key in shared}}


def _embedded(work: Encode) -> Embedded:
    """Return the rows of `work`, however many: a part at a time, all by one model."""
    settings, worker = service().settings, service().worker
    parts = list(parts_of(work, settings.batch_queries))
    until = g.received + min(settings.max_deadline_ms, settings.deadline_ms * len(parts)) / 1000
    while True:
        found: list[Embedded] = []
        for part in parts:
            embedded = worker.answer(part, until, admitted=bool(found)).embedded
            assert embedded is not None
            found.append(embedded)
        if len({embedded.model for embedded in found}) == 1:  # else another was activated in between: once more
            return Embedded.joined(found)


def _shown(rows: Float32Array, encoding: str) -> list[Any]:
    if encoding == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
    shown: list[Any] = rows.astype(np.float64).round(8).tolist()
    return shown


def _usage(tokens: Sequence[int]) -> dict[str, int]:
    return {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}


__all__ = ["compat_api"]
