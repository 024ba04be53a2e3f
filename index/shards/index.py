"""The front's view of labels that are spread over shards: it knows which are live and where, and asks for all else."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dexml.bundle import Bundle
from dexml.kernels import Kernels
from dexml.manifest import Row
from dexml.types import Float32Array, Int64Array, TopK
from index.base import ChangingIndex
from index.merge import merged
from index.patience import Patience
from index.rerankers import Reranker
from index.shards import parts
from index.shards.base import Engine, Kind, Question, Reply, Step

_count = itertools.count()


class ShardedIndex(ChangingIndex):
    """Rows of a version cut at `at` (0, …, L), a run to each shard; rows added since go round the shards by their number.

    Of the rows themselves it reads those asked for by number, in the version's own file, and keeps those added.
    """

    def __init__(self, bundle: Bundle, row: Row, kernels: Kernels, engine: Engine, at: Sequence[int]) -> None:
        """Let the shards load their parts. Raises InputError when one refuses."""
        self.kernels = kernels
        self.lock = threading.RLock()
        self.dimension = bundle.manifest.dimension
        self._engine = engine
        self._at = np.array(at, dtype=np.int64)
        self._rows = bundle.embeddings
        self._added: list[Float32Array] = []
        self._alive: npt.NDArray[np.bool_] = np.ones(len(self._rows), dtype=bool)
        self._live = len(self._rows)
        self._gone_published = 0
        self._changes: list[list[Step]] = [[] for _ in range(engine.shards)]
        self._key = f"{bundle.root.name}#{next(_count)}"
        self._loaded = engine.load(self._key, parts.spread(bundle, row, at))
        weakref.finalize(self, engine.drop, self._key)

    @staticmethod
    def on(engine: Engine) -> Callable[[Bundle, Row, Kernels], ShardedIndex]:
        """Return what spreads versions evenly over an engine's shards: a `Spread` of `index.store`."""

        def spread(bundle: Bundle, row: Row, kernels: Kernels) -> ShardedIndex:
            return ShardedIndex(bundle, row, kernels, engine, parts.cuts(len(bundle.labels), engine.shards))

        return spread

    def __len__(self) -> int:
        return self._live

    @property
    def exact(self) -> bool:
        """Whether every shard gives its true top-k."""
        return all(told.exact for told in self._loaded)

    @property
    def published(self) -> int:
        """How many rows the version has."""
        return len(self._rows)

    @property
    def stray(self) -> int:
        """How many rows compaction would save or index: those gone, and those added."""
        return self._gone_published + len(self._added)

    @property
    def gone(self) -> int:
        """How many rows are searched over and left out; asks for no lock."""
        return len(self._alive) - self._live

    @property
    def up(self) -> tuple[int, ...]:
        """How many copies of each shard answer."""
        return self._engine.up

    def describe(self) -> dict[str, object]:
        """Return the engine, the labels of each shard as published, and what the first shard with labels searches with."""
        sizes = np.diff(self._at)
        first = self._loaded[int(np.argmax(sizes > 0))].about
        about = {**first, **self._engine.describe(), "labels": sizes.tolist()}
        return about if not self.stray else {**about, "added": len(self._added), "gone": self.gone}

    def change(self, rows: Tensor, gone: Iterable[int]) -> None:
        """Add `rows` float32 (n, D), numbered on from the last, and take out the rows `gone`; the shards are told."""
        with self.lock:
            numbers = np.arange(len(self._alive), len(self._alive) + len(rows), dtype=np.int64)
            taken = np.array(list(gone), dtype=np.int64)
            new = rows.numpy().copy()
            self._added.extend(new)
            self._alive = np.concatenate([self._alive, np.ones(len(rows), dtype=bool)])
            assert self._alive[taken].all(), "a row goes once"
            self._alive[taken] = False
            self._live += len(rows) - len(taken)
            self._gone_published += int((taken < self.published).sum())
            owners, of_taken = self._owner(numbers), self._owner(taken)
            for shard, changes in enumerate(self._changes):
                mine = owners == shard
                change = Step(new[mine], numbers[mine], taken[of_taken == shard])
                if len(change.numbers) or len(change.gone):
                    changes.append(change)
                    self._engine.change(self._key, shard, len(changes), change)

    def is_live(self, numbers: Int64Array) -> npt.NDArray[np.bool_]:
        """Return whether each row is that of a live label, bool of the shape of `numbers`."""
        alive: npt.NDArray[np.bool_] = self._alive[numbers]
        return alive

    def snapshot(self, numbers: Int64Array) -> Tensor:
        """Return the rows `numbers`, float32 (n, D), in memory of their own."""
        rows = torch.empty(len(numbers), self.dimension)
        old = torch.from_numpy(numbers < self.published)
        rows[old] = self._rows[torch.from_numpy(numbers)[old]]
        new = numbers[numbers >= self.published] - self.published
        if len(new):
            rows[~old] = torch.from_numpy(np.stack([self._added[number] for number in new]))
        return rows

    def search(self, queries: Tensor, k: int, temperature: float, patience: Patience | None = None) -> TopK:
        """Return the k best live rows for `queries` float32 (B, D), reranked where they are; log_z is float64."""
        with self.lock:
            replies = self._ask("live", queries, k, temperature, patience)
            return merged([_topk(reply) for reply in replies], lambda row, ids: self._by_score(queries[row], ids))

    def search_published(self, queries: Tensor, k: int) -> TopK:
        """Return the k best of the version's rows, whatever was taken out since."""
        with self.lock:
            return merged([_topk(reply) for reply in self._ask("published", queries, k, 1.0, None)])

    def log_partition(self, queries: Tensor, temperature: float, found: TopK, patience: Patience | None = None) -> Tensor:
        """Return log Σ e^{s/τ} (B) over all live rows; not over those of shards that are missing."""
        if found.log_z is not None:
            return found.log_z.float()
        with self.lock:
            replies = self._ask("partition", queries, 1, temperature, patience)
            log_z = merged([_topk(reply) for reply in replies]).log_z
            assert log_z is not None, "asked for"
            return log_z.float()

    def reranked(self, reranker: Reranker, queries: Tensor, found: TopK, temperature: float) -> TopK:
        """Return the candidates as they are, log_z over them: the shards have reranked, and reranking is by score alone."""
        sums = torch.logsumexp(found.scores.double() / temperature, dim=1).float()
        return TopK(found.ids, found.scores, sums)

    def rescore(self, queries: Tensor, ids: Tensor, temperature: float) -> TopK:
        """Return the rows `ids` int64 (B, K; −1 = none) by their exact score, from the version's own file."""
        numbers = np.unique(ids.numpy())
        numbers = numbers[numbers >= 0]  # ascending, so that equal scores keep their order
        places = torch.from_numpy(np.where(ids.numpy() < 0, -1, np.searchsorted(numbers, ids.numpy())))
        prepared = self.kernels.prepare(self.snapshot(numbers), copy="none")
        found = self.kernels.rescore(queries, prepared, places, temperature)
        back = torch.from_numpy(np.append(numbers, -1))[found.ids]
        return TopK(back, found.scores, found.log_z)

    def _by_score(self, query: Tensor, ids: Int64Array) -> Int64Array:
        return self.rescore(query[None], torch.from_numpy(ids)[None], 1.0).ids[0].numpy()

    def _owner(self, numbers: Int64Array) -> Int64Array:
        """Return the shard of each row."""
        of_version = np.searchsorted(self._at, numbers, side="right") - 1
        return np.where(numbers < self.published, of_version, (numbers - self.published) % self._engine.shards).astype(np.int64)

    def _ask(self, kind: Kind, queries: Tensor, k: int, temperature: float, patience: Patience | None) -> list[Reply]:
        steps = tuple(len(changes) for changes in self._changes)
        question = Question(self._key, steps, kind, queries.numpy(), k, temperature)
        replies = self._engine.ask(question, patience or Patience(), lambda shard, step: self._changes[shard][step:])
        told = [reply for reply in replies if reply is not None]
        assert all(reply.ids is not None and reply.key == self._key for reply in told), "an answer to another question"
        return told


def _topk(reply: Reply) -> TopK:
    assert reply.ids is not None and reply.scores is not None
    log_z = None if reply.log_z is None else torch.from_numpy(np.array(reply.log_z))
    return TopK(torch.from_numpy(np.array(reply.ids)), torch.from_numpy(np.array(reply.scores)), log_z)


__all__ = ["ShardedIndex"]
