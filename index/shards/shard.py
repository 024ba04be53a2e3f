"""A shard: its part of one version or two, searched as a whole bundle is, with the numbers that rows have in the whole."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from dexml.errors import InputError
from dexml.kernels import choose
from dexml.types import Int64Array, TopK
from index import INDEXES
from index.base import LabelIndex
from index.live import LiveIndex
from index.rerankers import RERANKERS, Reranker
from index.shards.base import Loaded, Question, Reply, Step
from index.shards.parts import read


class Part:
    """Rows `first` … of a version, and rows added since; `step` counts the changes. Numbers are those of the whole."""

    def __init__(self, index: LiveIndex, reranker: Reranker, first: int) -> None:
        self.index = index
        self.step = 0
        self._reranker = reranker
        self._first = first
        self._added = np.empty(0, dtype=np.int64)  # ascending, so that equal scores keep their order

    @staticmethod
    def open(folder: Path) -> Part:
        """Return the part in `folder`, verified and at full speed. Raises InputError."""
        manifest, rows = read(folder)
        kernels = choose()
        chosen: LabelIndex | None = None
        if len(rows):
            chosen = INDEXES.build(manifest.index.name, manifest.index.options)
            chosen.load(folder / "index", rows)
        index = LiveIndex(chosen, rows, kernels)
        index.warm()
        return Part(index, RERANKERS.build(manifest.rerank.name, manifest.rerank.options, kernels), manifest.first)

    def change(self, change: Step) -> None:
        """Make the next change."""
        gone = np.where(
            change.gone < self._first + self.index.published,
            change.gone - self._first,
            self.index.published + np.searchsorted(self._added, change.gone),
        )
        self._added = np.concatenate([self._added, change.numbers])
        self.index.change(torch.from_numpy(np.array(change.rows)), gone.tolist())
        self.step += 1

    def answer(self, question: Question) -> Reply:
        """Return the answer to a question about this version, as it is after `step` changes."""
        started = time.perf_counter()
        queries, temperature = torch.from_numpy(np.array(question.queries)), question.temperature  # Ray's arrays are read-only
        if question.kind == "published":
            found = self.index.search_published(queries, question.k) if self.index.published else _nothing(question)
            log_z = found.log_z
        else:
            found = self.index.search(queries, question.k, temperature)
            log_z = found.log_z
            if question.kind == "partition":
                log_z = self.index.log_partition(queries, temperature, found)
            elif len(self.index):
                found = self.index.reranked(self._reranker, queries, found, temperature)
        ids = self._numbers(found.ids.numpy())
        wide = None if log_z is None else log_z.double().numpy()
        return Reply(question.key, self.step, ids, found.scores.numpy(), wide, time.perf_counter() - started)

    def _numbers(self, ids: Int64Array) -> Int64Array:
        numbers = np.where(ids < 0, ids, ids + self._first)
        added = ids >= self.index.published
        if added.any():
            numbers[added] = self._added[ids[added] - self.index.published]
        return numbers


class Shard:
    """The parts that one process has loaded, by key. Searches and changes come one at a time; loading may run beside them."""

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}

    def load(self, key: str, folder: str) -> Loaded:
        """Open the part in `folder` as `key`."""
        try:
            part = self._parts[key] = Part.open(Path(folder))
        except (InputError, OSError) as error:
            return Loaded(fault=str(error))
        return Loaded(exact=part.index.exact, about=part.index.describe())

    def drop(self, key: str) -> None:
        """Let go of a part."""
        self._parts.pop(key, None)

    def change(self, key: str, step: int, changes: Iterable[Step]) -> None:
        """Make changes, the first of which is number `step`; those made already are passed over, and no gap is left."""
        part = self._parts.get(key)
        for number, change in enumerate(changes, start=step):
            if part is not None and number == part.step + 1:
                part.change(change)

    def answer(self, question: Question, step: int) -> Reply:
        """Return the answer after `step` changes, or say how many there were."""
        part = self._parts.get(question.key)
        if part is None or part.step != step:
            return Reply(question.key, -1 if part is None else part.step)
        return part.answer(question)


def _nothing(question: Question) -> TopK:
    shape = len(question.queries), question.k
    none = torch.full(shape[:1], -torch.inf)
    return TopK(torch.full(shape, -1, dtype=torch.int64), torch.full(shape, -torch.inf), none)


__all__ = ["Part", "Shard"]
