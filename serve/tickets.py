"""What travels between request threads and the owner of the model: work, its ticket, and what answered it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dexml.types import Float32Array
from index.diversity import Diversity
from index.embedded import Embedded
from index.retriever import Found, Normalize, Retriever
from index.store import Store, Written
from serve.errors import Problem


@dataclass(frozen=True, eq=False)
class Serving:
    """What answers requests. Versions may change behind it: an answer says itself which one gave it (`Found`)."""

    retriever: Retriever

    @property
    def store(self) -> Store:
        """The labels, and who may change them."""
        return self.retriever.store

    @property
    def dimension(self) -> int:
        """The width D of the embeddings of the current version."""
        return self.retriever.dimension

    @property
    def info(self) -> dict[str, Any]:
        """What the current version says of itself."""
        return self.retriever.describe()

    @property
    def exact(self) -> bool:
        """Whether the index sees every label."""
        return self.retriever.exact


@dataclass(frozen=True, eq=False)
class Ask:
    """The work of one request: texts or unit rows (B, D), and how to answer them."""

    k: int
    texts: tuple[str, ...] = ()
    embeddings: Tensor | None = None
    candidates: int | None = None
    temperature: float | None = None
    normalize: Normalize = "topk"
    diversity: Diversity | None = None
    why: bool = False
    partial: bool = False

    def __len__(self) -> int:
        return len(self.texts) if self.embeddings is None else len(self.embeddings)

    @property
    def group(self) -> tuple[object, ...]:
        """Return what two requests must share to travel together; k too, lest an answer depend on its neighbours."""
        how = (self.candidates, self.temperature, self.normalize, self.diversity, self.why, self.partial)
        return (self.embeddings is None, self.k, *how)


@dataclass(frozen=True, eq=False)
class Encode:
    """Texts to be read as queries are and as labels are, and labels, by id, whose rows are wanted."""

    queries: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.queries) + len(self.labels) + len(self.ids)

    @property
    def group(self) -> tuple[object, ...]:
        """Return what all such work shares: rows do not depend on their neighbours."""
        return (Encode,)


@dataclass(frozen=True, eq=False)
class Edit:
    """Labels to put there, (id, text, unit row or None to encode the text), and ids to delete: one write, all or nothing.

    `check` is called right before the write, when no other can come in between; it raises Problem where it must not be.
    """

    put: tuple[tuple[str, str | None, Float32Array | None], ...] = ()
    deleted: tuple[str, ...] = ()
    check: Callable[[Store], None] | None = None

    def __len__(self) -> int:
        return 1

    @property
    def group(self) -> tuple[object, ...]:
        """Return what no other request has: a write travels alone."""
        return (self,)


@dataclass(eq=False)
class Ticket:
    """One admitted request: its work, its deadline (monotonic seconds) and, once `done`, its answer or its problem."""

    ask: Ask | Encode | Edit
    deadline: float
    submitted: float
    done: threading.Event = field(default_factory=threading.Event)
    started: float = 0.0
    found: Found | None = None
    embedded: Embedded | None = None
    written: Written | None = None
    problem: Problem | None = None
