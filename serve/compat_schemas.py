"""What clients of OpenAI's and Cohere's APIs send and get: pydantic models of SERVING §1.1 and §1.2."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from serve.schemas import LabelId, Text, Usage, few_enough, limits

TEXT_OR_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
DOCUMENTS = {
    "anyOf": [
        {
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "properties": {"text": {"type": "string"}},
                        "required": ["text"],
                        "additionalProperties": False,
                    },
                ]
            },
        },
        {"type": "null"},
    ]
}


def _few_enough(rows: Any, info: ValidationInfo) -> Any:
    """Count before looking at a single row, so that a huge batch costs nothing."""
    return few_enough(rows, limits(info).max_inputs)


def _texts(rows: Any) -> Any:
    """Return one text as a list of it. Token numbers, which OpenAI takes too, mean nothing without its tokenizer."""
    if isinstance(rows, str):
        return [rows]
    if isinstance(rows, list) and rows and isinstance(rows[0], int | list):
        raise PydanticCustomError("schema", "must be a text or a list of texts; arrays of tokens are not read")
    return rows


def _plain(document: Any) -> Any:
    """Return the text of `{"text": …}`."""
    return document["text"] if isinstance(document, dict) and set(document) == {"text"} else document


ModelName = Annotated[
    str | None, Field(description="A name of /v1/models, or 404; null takes the model that is being served.", max_length=512)
]
Truncate = Annotated[bool, Field(description="Read the start of a text too long for the model, or refuse it.")]


class EmbeddingsRequest(BaseModel):
    """Texts to embed, in the shape of OpenAI's API; `input_type` and `truncate` are ours."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        json_schema_extra={"example": {"input": ["sort an array along an axis"], "encoding_format": "float"}},
    )

    input: Annotated[
        list[Text],
        BeforeValidator(_few_enough),
        BeforeValidator(_texts),
        WithJsonSchema(TEXT_OR_TEXTS),
        Field(description="A text, or at most 2048; arrays of tokens are not read."),
    ]
    model: ModelName = None
    encoding_format: Annotated[
        Literal["float", "base64"], Field(description="Numbers, or their bytes: float32, little-endian.")
    ] = "float"
    dimensions: Annotated[int | None, Field(description="The model's dimension: rows are not cut.")] = None
    user: Annotated[str | None, Field(description="Taken, and not used.", max_length=512)] = None
    input_type: Annotated[
        Literal["query", "label"], Field(description="Read the texts as queries are, or as the texts of labels are.")
    ] = "query"
    truncate: Truncate = True


class RerankRequest(BaseModel):
    """A query, and what to put in order: give exactly one of `documents`, as Cohere and Jina do, and `ids`, which is ours."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        json_schema_extra={"example": {"query": "sort an array", "documents": ["mean of an axis", "sorted copy"], "top_n": 2}},
    )

    query: Text
    documents: Annotated[
        list[Annotated[Text, BeforeValidator(_plain)]] | None,
        WithJsonSchema(DOCUMENTS),
        Field(description="At most 2048 texts, read as the texts of labels are."),
    ] = None
    ids: Annotated[list[LabelId] | None, Field(description="At most 2048 labels, whose stored rows are compared.")] = None
    model: ModelName = None
    top_n: Annotated[int | None, Field(description="How many to return; null takes all.", ge=1)] = None
    return_documents: Annotated[bool, Field(description="Return the texts too.")] = False
    truncate: Truncate = True

    _count = field_validator("documents", "ids", mode="before")(_few_enough)

    @model_validator(mode="after")
    def _one_of_them(self) -> RerankRequest:
        if (self.documents is None) == (self.ids is None):
            raise PydanticCustomError("schema", "give exactly one of documents and ids")
        return self


class Embedding(BaseModel):
    """The unit row of one text; `known` is False, and the row 0, where the model knows no word of it."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    known: bool
    truncated: bool


class EmbeddingsResponse(BaseModel):
    """Embeddings in the order of the input."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Document(BaseModel):
    """A text that was compared."""

    text: str


class Ranked(BaseModel):
    """One document: its place in the request, and the cosine of its row and the query's, −1 to 1; 0 where either is 0."""

    index: int
    relevance_score: float
    document: Document | None
    id: str | None


class ApiVersion(BaseModel):
    """The version of Cohere's API that was asked."""

    version: Literal["1", "2"]


class Meta(BaseModel):
    """What Cohere's clients read."""

    api_version: ApiVersion


class RerankResponse(BaseModel):
    """Documents by descending score, equal ones in the order of the request; `known` is whether the query is."""

    id: str
    model: str
    results: list[Ranked]
    known: bool
    meta: Meta
    usage: Usage


class Training(BaseModel):
    """How the model came to be."""

    format: str
    rows: int
    steps: int
    finished: bool
    commit: str | None


class ModelCard(BaseModel):
    """A model that is being served; `created` is in seconds since 1970."""

    object: Literal["model"]
    id: str
    created: int
    owned_by: str
    encoder: str
    dimension: int
    max_tokens: int
    temperature: float
    labels: int
    training: Training


class ModelList(BaseModel):
    """The names that requests may use: of whatever is served, and of this very encoder."""

    object: Literal["list"]
    data: list[ModelCard]


__all__ = ["EmbeddingsRequest", "EmbeddingsResponse", "ModelCard", "ModelList", "RerankRequest", "RerankResponse"]
