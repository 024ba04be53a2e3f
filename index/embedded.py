"""Texts and labels as unit rows, for whoever compares them elsewhere: all rows of one call are of one version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dexml.types import Float32Array
from index.live import Live
from index.store import version_of


@dataclass(frozen=True, eq=False)
class Embedded:
    """Unit rows float32: `queries` (Q, D) and `labels` (N, D) of texts, `stored` (M, D) of labels asked for by id.

    The row of a text of which the model knows no word is 0. `query_tokens` and `label_tokens` count what a text holds, of
    which `max_tokens` were read. `texts` (M) are those of the stored labels, None, and the row 0, where there is no such one.
    """

    queries: Float32Array
    labels: Float32Array
    stored: Float32Array
    query_tokens: tuple[int, ...]
    label_tokens: tuple[int, ...]
    texts: tuple[str | None, ...]
    max_tokens: int
    model: str

    def part(self, queries: slice, labels: slice, ids: slice) -> Embedded:
        """Return some of the rows."""
        return replace(
            self,
            queries=self.queries[queries],
            labels=self.labels[labels],
            stored=self.stored[ids],
            query_tokens=self.query_tokens[queries],
            label_tokens=self.label_tokens[labels],
            texts=self.texts[ids],
        )

    @staticmethod
    def joined(parts: Sequence[Embedded]) -> Embedded:
        """Return the rows of several parts, which are of one model, in a row."""
        return replace(
            parts[0],
            queries=np.concatenate([part.queries for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            stored=np.concatenate([part.stored for part in parts]),
            query_tokens=tuple(count for part in parts for count in part.query_tokens),
            label_tokens=tuple(count for part in parts for count in part.label_tokens),
            texts=tuple(text for part in parts for text in part.texts),
        )


def embed(live: Live, queries: Sequence[str], labels: Sequence[str], ids: Sequence[str]) -> Embedded:
    """Return the rows of texts read as queries and as labels are, and of the labels `ids`."""
    version = version_of(live)
    query_rows, query_tokens = version.model.embed_queries(queries)
    label_rows, label_tokens = version.model.embed_documents(labels)
    stored = np.zeros((len(ids), version.bundle.manifest.dimension), dtype=np.float32)
    with live.index.lock:  # what a label's row is, and its text, are of one moment
        numbers = [live.labels.row(name) for name in ids]
        there = [place for place, number in enumerate(numbers) if number is not None]
        stored[there] = live.index.snapshot(np.array([numbers[place] for place in there], dtype=np.int64)).numpy()
        texts = tuple(None if number is None else live.labels.texts[number] for number in numbers)
    return Embedded(
        query_rows.numpy(),
        label_rows.numpy(),
        stored,
        tuple(query_tokens.tolist()),
        tuple(label_tokens.tolist()),
        texts,
        version.model.encoder.max_tokens,
        version.bundle.name,
    )


__all__ = ["Embedded", "embed"]
