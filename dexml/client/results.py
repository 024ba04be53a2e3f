"""What a service answers, as small frozen values; fields that a newer service adds are passed over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reason:
    """A training query that has the label, and its cosine with the query."""

    text: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Label:
    """A label of an answer; what was not asked for, or is not defined, is None. `rank_score` orders diverse answers."""

    id: str
    score: float
    probability: float | None = None
    text: str | None = None
    rank_score: float | None = None
    why: tuple[Reason, ...] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The labels for one query, best first. `known` is False where the model knows no word of the text."""

    labels: tuple[Label, ...]
    exact: bool
    known: bool
    truncated: bool


@dataclass(frozen=True, slots=True)
class Search:
    """The results of a search, in the order of the queries, of one version of the index. A sequence of `Result`."""

    id: str
    model: str
    index_version: str
    results: tuple[Result, ...]
    timing_ms: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, number: int) -> Result:
        return self.results[number]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document of a rerank: its place in what was asked, and its score."""

    index: int
    relevance_score: float
    document: str | None = None


@dataclass(frozen=True, slots=True)
class StoredLabel:
    """A label as the service holds it."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class NewLabel:
    """A label to put there: its `text` is encoded, unless there is an `embedding` (D, any array); then it is only shown."""

    id: str
    text: str | None = None
    embedding: Any = None


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did; it is on disk, and every search from now on sees it. `labels` are there now."""

    upserted: int
    replaced: int
    deleted: int
    sequence: int
    index_version: str
    labels: int

    def __add__(self, later: Written) -> Written:
        """Return what this write and a later one did together."""
        sums = (self.upserted + later.upserted, self.replaced + later.replaced, self.deleted + later.deleted)
        return Written(*sums, later.sequence, later.index_version, later.labels)


@dataclass(frozen=True, slots=True)
class Info:
    """What is being served, within which limits; `everything` holds the whole answer."""

    version: str
    model: str
    index_version: str
    labels: int
    dimension: int
    exact: bool
    limits: Mapping[str, float]
    everything: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Some labels, and the cursor of what follows."""

    labels: tuple[StoredLabel, ...]
    next: str | None


def made(kind: Callable[..., T], document: Any, **given: Any) -> T:
    """Return the dataclass `kind` of a JSON object's own fields and those `given`. Raises KeyError for one that is missing."""
    if not isinstance(document, dict):
        raise TypeError(f"expected an object, got {type(document).__name__}")
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**given, **{name: document[name] for name in names if name in document and name not in given})


def read_search(document: Any) -> Search:
    """Return the answer of /v1/search."""

    def one(label: Any) -> Label:
        reasons = label.get("why")
        return made(Label, label, why=None if reasons is None else tuple(made(Reason, reason) for reason in reasons))

    results = tuple(made(Result, result, labels=tuple(map(one, result["labels"]))) for result in document["results"])
    return made(Search, document, results=results)


def read_embeddings(document: Any) -> list[list[float]]:
    """Return the rows of /v1/embeddings, in the order of the texts."""
    rows = sorted(document["data"], key=lambda item: int(item["index"]))
    return [[float(number) for number in row["embedding"]] for row in rows]


def read_ranking(document: Any) -> list[Ranked]:
    """Return the answer of /v1/rerank, best first."""

    def one(item: Any) -> Ranked:
        held = item.get("document")
        text = held["text"] if isinstance(held, dict) else held
        return Ranked(item["index"], item["relevance_score"], text)

    return [one(item) for item in document["results"]]


def read_page(document: Any) -> Page:
    """Return a part of /v1/labels."""
    return Page(tuple(made(StoredLabel, label) for label in document["labels"]), document["next"])


def read_info(document: Any) -> Info:
    """Return the answer of /v1/info."""
    return made(Info, document, everything=document)


__all__ = ["Info", "Label", "NewLabel", "Page", "Ranked", "Reason", "Result", "Search", "StoredLabel", "Written"]
