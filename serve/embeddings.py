"""Work that asks for rows alone: cut into parts that let searches in between, batched, and put together again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

from index.embedded import Embedded
from index.retriever import Retriever
from serve.tickets import Encode


def parts_of(work: Encode, size: int) -> Iterator[Encode]:
    """Yield `work` as one or more parts of at most `size` rows each."""
    for start in count(0, size):
        ends = [start, start + size]
        parts = []
        for rows in (work.queries, work.labels, work.ids):
            parts.append(rows[max(0, ends[0]) : max(0, ends[1])])
            ends = [end - len(rows) for end in ends]
        if not any(parts):
            return
        yield Encode(*parts)


def embed_all(retriever: Retriever, asks: Sequence[Encode]) -> list[Embedded]:
    """Return the rows of several pieces of work, in one pass of the model."""
    whole = retriever.embed(
        [text for ask in asks for text in ask.queries],
        [text for ask in asks for text in ask.labels],
        [name for ask in asks for name in ask.ids],
    )
    found, queries, labels, ids = [], 0, 0, 0
    for ask in asks:
        found.append(
            whole.part(
                slice(queries, queries + len(ask.queries)),
                slice(labels, labels + len(ask.labels)),
                slice(ids, ids + len(ask.ids)),
            )
        )
        queries, labels, ids = queries + len(ask.queries), labels + len(ask.labels), ids + len(ask.ids)
    return found


__all__ = ["embed_all", "parts_of"]
