"""What clients send and get about labels: pydantic models of SERVING §1.2."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dexml.text import text_fault
from serve.schemas import LabelId, Text, few_enough, limits


class NewLabel(BaseModel):
    """A label to put there: its `text` is encoded, unless an `embedding` is given; then the text is only shown."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: LabelId
    text: Text | None = None
    embedding: Annotated[
        list[float] | None,
        Field(description="Of the model's dimension; its length is ignored, as in a cosine.", fail_fast=True),
    ] = None

    @model_validator(mode="after")
    def _one_at_least(self) -> NewLabel:
        if self.text is None and self.embedding is None:
            raise PydanticCustomError("schema", "needs a text or an embedding")
        if self.text is None and (fault := text_fault(self.id)):  # the id is shown for it
            raise PydanticCustomError(fault.code, "needs a text, since its id {words}", {"words": fault.words})
        return self


def _few_enough(rows: Any, info: ValidationInfo) -> Any:
    """Count before looking at a single row, so that a huge batch costs nothing."""
    return few_enough(rows, limits(info).max_labels)


class UpsertRequest(BaseModel):
    """Labels that are new, or that take the place of those with the same ids; all of them, or none."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        json_schema_extra={"example": {"labels": [{"id": "B1", "text": "usb c cable"}]}},
    )

    labels: Annotated[list[NewLabel], Field(description="At most 1000.")]
    if_exists: Annotated[Literal["replace", "error"], Field(description="409 instead of replacing a label that is there.")] = (
        "replace"
    )

    _count = field_validator("labels", mode="before")(_few_enough)

    @field_validator("labels")
    @classmethod
    def _once(cls, labels: list[NewLabel]) -> list[NewLabel]:
        if len({label.id for label in labels}) < len(labels):
            raise PydanticCustomError("schema", "must name each id once")
        return labels


class DeleteRequest(BaseModel):
    """Labels to delete; ids that are not there are passed over, and not counted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, json_schema_extra={"example": {"ids": ["B1"]}})

    ids: Annotated[list[LabelId], Field(description="At most 1000.")]

    _count = field_validator("ids", mode="before")(_few_enough)


class WriteResponse(BaseModel):
    """What a write did. It is on disk, and every search from now on sees it."""

    upserted: int
    replaced: int
    deleted: int
    sequence: int
    durable: Literal[True]
    visible: Literal[True]
    index_version: str
    labels: int


class LabelBody(BaseModel):
    """A label."""

    id: str
    text: str


class LabelList(BaseModel):
    """Some labels in row order; `next` is the cursor of what follows, null at the end."""

    labels: list[LabelBody]
    next: str | None
    index_version: str


__all__ = ["DeleteRequest", "LabelBody", "LabelList", "NewLabel", "UpsertRequest", "WriteResponse"]
