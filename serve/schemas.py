"""What clients send and get: pydantic models of SERVING §1.2, which also write `/openapi.json`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dexml.text import TextFault, id_fault, text_fault
from serve.calibrated import Precision, check_calibrated
from serve.settings import Settings

DEFAULTS = Settings()


def few_enough(rows: Any, most: int, least: int = 1) -> Any:
    """Count before looking at a single row, so that a huge batch costs nothing. What is no list is left to others."""
    if isinstance(rows, list) and len(rows) < least:
        raise PydanticCustomError("empty", "must not be empty")
    if isinstance(rows, list) and len(rows) > most:
        raise PydanticCustomError(
            "batch_too_large", "must have at most {limit} entries, got {got}", {"limit": most, "got": len(rows)}
        )
    return rows


def limits(info: ValidationInfo) -> Settings:
    """Return the limits that the caller of `model_validate` gave as its context."""
    return cast("Settings", (info.context or {}).get("settings", DEFAULTS))


def _refuse(fault: TextFault | None) -> None:
    if fault is not None:
        raise PydanticCustomError(fault.code, "{words}", {"words": fault.words})


def _text(text: str, info: ValidationInfo) -> str:
    limit = limits(info).max_text_chars
    if len(text) > limit:
        raise PydanticCustomError(
            "text_too_long", "must have at most {limit} characters, got {got}", {"limit": limit, "got": len(text)}
        )
    _refuse(text_fault(text))
    return text


def _label_id(name: str) -> str:
    _refuse(id_fault(name))
    return name


Text = Annotated[str, AfterValidator(_text)]
LabelId = Annotated[str, AfterValidator(_label_id)]


class SearchRequest(BaseModel):
    """The best labels for texts or for embeddings: give exactly one of `queries` and `embeddings`."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        json_schema_extra={"example": {"queries": ["sort an array along an axis"], "top_k": 5}},
    )

    queries: Annotated[list[Text] | None, Field(description="Texts, at most 64.")] = None
    embeddings: Annotated[
        list[Annotated[list[float], Field(fail_fast=True)]] | None,
        Field(description="Vectors of the model's dimension, at most 64; their length is ignored, as in a cosine."),
    ] = None
    top_k: Annotated[int, Field(description="How many labels to return, 1 to 1000.")] = 10
    candidates: Annotated[
        int | None, Field(description="How many labels to rescore, top_k to 2048; null leaves it to the bundle.")
    ] = None
    exact: Annotated[bool, Field(description="Insist on the true top-k; 422 where the index is approximate.")] = False
    temperature: Annotated[float | None, Field(description="τ of the probabilities; null takes the model's.")] = None
    normalize: Annotated[
        Literal["none", "topk", "all", "sigmoid", "calibrated"],
        Field(
            description="What probabilities sum to one over: the rescored candidates (topk), every label (all), "
            "nothing (none), or each label for itself (sigmoid; calibrated: how often labels that scored so were right, 422 "
            "where the bundle has no calibration). Hiding labels by exclude_ids or min_score changes "
            "no other label's probability."
        ),
    ] = "topk"
    diversity: Annotated[
        float | None,
        Field(
            description="σ of Soft-NMS, 0.001 to 1000: a label's probability, at the model's own τ, decays by e^{−sim²/σ} for "
            "each label above it, sim being the cosine of the two where that is positive. Smaller is stronger, null is off. "
            "It changes the order of the candidates (at most 512), and so which of them are the top_k, but no score and no "
            "probability, and removes none."
        ),
    ] = None
    min_score: Annotated[float | None, Field(description="Leave out labels that score below.")] = None
    min_precision: Annotated[
        Precision | None,
        Field(
            description="0 to 1, with normalize calibrated: leave out labels that are too improbable for the share "
            "min_precision of those returned to be right. 422 where the bundle can promise no such precision."
        ),
    ] = None
    exclude_ids: Annotated[list[LabelId], Field(description="Labels to leave out; unknown ids are ignored.")] = []
    include: Annotated[
        list[Literal["text", "probability", "why"]],
        Field(description="Fields that are filled; the others are null. 422 for why where no training queries are kept."),
    ] = ["text", "probability"]
    truncate: Annotated[bool, Field(description="Read the start of a text too long for the model, or refuse it.")] = True
    timeout_ms: Annotated[int | None, Field(description="Deadline, 1 to 30000; null takes the server's.")] = None
    allow_partial: Annotated[
        bool,
        Field(
            description="Where shards of the labels do not answer: take the answers of the others (partial: true), not "
            "503. Probabilities are null then with normalize all. 422 with exact, and where training queries are heard."
        ),
    ] = False
    index_version: Annotated[str | None, Field(description="404 unless this version is being served.")] = None

    @field_validator("queries", "embeddings", "exclude_ids", mode="before")
    @classmethod
    def _few_enough(cls, rows: Any, info: ValidationInfo) -> Any:
        """Count before looking at a single row, so that a huge batch costs nothing."""
        if info.field_name == "exclude_ids":
            return few_enough(rows, limits(info).max_excluded, least=0)
        return few_enough(rows, limits(info).max_queries)

    @field_validator("include", mode="before")
    @classmethod
    def _short_list(cls, names: Any) -> Any:
        if isinstance(names, list) and len(names) > 16:
            raise PydanticCustomError("schema", "must have at most 16 entries")
        return names

    @field_validator("top_k", "candidates", "timeout_ms")
    @classmethod
    def _in_range(cls, value: int | None, info: ValidationInfo) -> int | None:
        bounds = limits(info)
        highest, code = {
            "top_k": (bounds.max_top_k, "top_k_out_of_range"),
            "candidates": (bounds.max_candidates, "candidates_out_of_range"),
            "timeout_ms": (bounds.max_deadline_ms, "timeout_out_of_range"),
        }[str(info.field_name)]
        if value is not None and not 1 <= value <= highest:
            raise PydanticCustomError(
                code, "must be between 1 and {highest}, got {value}", {"highest": highest, "value": value}
            )
        return value

    @field_validator("temperature", "diversity")
    @classmethod
    def _positive(cls, value: float | None, info: ValidationInfo) -> float | None:
        bounds = limits(info)
        low, high = {
            "temperature": (bounds.min_temperature, bounds.max_temperature),
            "diversity": (bounds.min_diversity, bounds.max_diversity),
        }[str(info.field_name)]
        if value is not None and not low <= value <= high:
            raise PydanticCustomError(
                "temperature_out_of_range" if info.field_name == "temperature" else "diversity_out_of_range",
                "must be between {low} and {high}, got {value}",
                {"low": low, "high": high, "value": value},
            )
        return value

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> SearchRequest:
        if (self.queries is None) == (self.embeddings is None):
            raise PydanticCustomError("schema", "give exactly one of queries and embeddings")
        if self.candidates is not None and self.candidates < self.top_k:
            raise PydanticCustomError(
                "candidates_out_of_range",
                "candidates must be at least top_k = {top_k}, got {candidates}",
                {"top_k": self.top_k, "candidates": self.candidates},
            )
        if self.exact and self.allow_partial:
            raise PydanticCustomError("schema", "exact and allow_partial exclude each other")
        check_calibrated(self.normalize, self.temperature, self.min_precision, diverse=self.diversity is not None)
        most, wanted = limits(info).max_diversified, self.candidates or self.top_k + len(set(self.exclude_ids))
        if self.diversity is not None and wanted > most:
            raise PydanticCustomError(
                "candidates_out_of_range",
                "with diversity, candidates (or else top_k and exclude_ids together) must be at most {most}, got {wanted}",
                {"most": most, "wanted": wanted},
            )
        return self


class Reason(BaseModel):
    """A training query that has the label, and its cosine with the query."""

    text: str
    similarity: float


class Answer(BaseModel):
    """One label of an answer; `probability`, `text` and `why` are null when not asked for or not defined.

    `score` is the cosine of query and label. In a bundle that hears its training queries (`memory` of /v1/info), a label that
    the nearest of them have scores higher than its cosine: as high as a label without them would have to, to be as probable.

    `rank_score` is what diverse answers are in the order of: the score less what likeness to the labels above took; else null.
    """

    id: str
    score: float
    rank_score: float | None
    probability: float | None
    text: str | None
    why: Annotated[
        list[Reason] | None, Field(description="The nearest training queries that have this label, at most three.")
    ] = None


class Normalizer(BaseModel):
    """What the probabilities sum to one over: `log_z` = log Σ e^{score/τ} over `labels` of them.

    Both are null for the kinds none, sigmoid and calibrated, where the text is not known, and for all where the answer is
    partial.
    """

    kind: Literal["none", "topk", "all", "sigmoid", "calibrated"]
    log_z: float | None
    labels: int | None


class Result(BaseModel):
    """The answers for one query, by descending score (diverse: `rank_score`), equal ones in the order of the label table."""

    query_index: int
    returned: int
    truncated: bool
    known: Annotated[
        bool, Field(description="False where the model knows no word of the text: no label is a better answer than another.")
    ]
    exact: bool
    normalizer: Normalizer
    labels: list[Answer]


class Shards(BaseModel):
    """How many parts of the index answered."""

    total: int
    ok: int
    failed: int


class Timing(BaseModel):
    """Milliseconds; encode, retrieve and rescore are those of the batch that the request travelled in."""

    queue: float
    encode: float
    retrieve: float
    rescore: float
    total: float


class Usage(BaseModel):
    """Tokens that the encoder read."""

    prompt_tokens: int
    total_tokens: int


class SearchResponse(BaseModel):
    """Answers to `POST /v1/search`."""

    id: str
    model: str
    index_version: str
    results: list[Result]
    shards: Shards
    partial: bool
    timing_ms: Timing
    usage: Usage


class Info(BaseModel):
    """What is being served, how, and within which limits."""

    name: str
    version: str
    model: str
    index_version: str
    labels: int
    dimension: int
    exact: bool
    examples: list[str]
    writes: Annotated[Literal["open", "key", "off"], Field(description="Whether labels may be changed, and whether by a key.")]
    keys: Annotated[bool, Field(description="Whether searching needs a key.")]
    limits: dict[str, float]
    bundle: dict[str, Any]


class Health(BaseModel):
    """The state of the service in one word."""

    status: Literal["alive", "ready"]


__all__ = ["Health", "Info", "SearchRequest", "SearchResponse"]
