"""Labels that change while they are searched: a version's index, rows added since, and rows that are gone.

A row's number never changes and is never given again; what compaction renumbers is another object. So an answer can be read by
numbers after the search that gave it, whatever has been added or deleted meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dexml.kernels import Kernels, Prepared
from dexml.kernels.pages import on_huge_pages
from dexml.label_log import Change
from dexml.types import Int64Array, LabelTable, TopK
from index.base import ChangingIndex, LabelIndex
from index.merge import merged
from index.patience import Patience
from index.recall import Recall
from index.rerankers import Reranker
from index.version import Version

_ROOM = 1024  # rows that the first addition makes room for, at least
_FETCHED = 64  # more candidates than k, where some may be gone
_TRUSTED = 0.1  # the share of Σ e^{s/τ} up to which gone labels are subtracted: more would cancel
_BLOCK = 1 << 16  # rows summed at a time where they would


@dataclass(frozen=True)
class Changed:
    """What a call did: labels that are new, that took another's place, and that are gone."""

    added: int
    replaced: int
    deleted: int


class LiveLabels:
    """The labels of all rows, gone ones too: `ids` and `texts` by row number; the length is that of the live ones.

    Only ever appended to, so that other threads may read by number.
    """

    def __init__(self, table: LabelTable, train_counts: Int64Array) -> None:
        self.ids: list[str] = list(table.ids)
        self.texts: list[str] = list(table.texts)
        self._trained = train_counts
        self._rows = dict(zip(self.ids, range(len(self.ids)), strict=True))

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, label: str) -> bool:
        return label in self._rows

    def row(self, label: str) -> int | None:
        """Return the row number of a live label."""
        return self._rows.get(label)

    def live(self) -> Int64Array:
        """Return the row numbers of all live labels, ascending."""
        return np.sort(np.fromiter(self._rows.values(), dtype=np.int64, count=len(self._rows)))

    def train_counts(self, rows: Int64Array) -> Int64Array:
        """Return how many training rows the labels of `rows` had; 0 for those added since."""
        counts = np.zeros(len(rows), dtype=np.int64)
        old = rows < len(self._trained)
        counts[old] = self._trained[rows[old]]
        return counts

    def put(self, label: str, text: str) -> int | None:
        """Give a label the next row; return the row that it had."""
        before = self._rows.get(label)
        self.ids.append(label)
        self.texts.append(text)
        self._rows[label] = len(self.ids) - 1
        return before

    def drop(self, label: str) -> int | None:
        """Take a label out; return the row that it had."""
        return self._rows.pop(label, None)


class LiveIndex(ChangingIndex):
    """Top-k by inner product over a version's rows (L, D), searched by its own index, and over rows added since, by `scan`.

    Gone rows are searched over and left out; log_z counts live ones alone. Any thread may call: one at a time gets in.
    """

    def __init__(self, base: LabelIndex | None, rows: Tensor, kernels: Kernels) -> None:
        """`base` is the index over `rows` float32 (L, D), None where L = 0."""
        assert (base is None) == (len(rows) == 0)
        self.base = base
        self.kernels = kernels
        self.lock = threading.RLock()
        self.dimension = rows.shape[1]
        self._of_base = self._live = self._count = len(rows)
        self._rows = rows  # and room for more
        self._alive: npt.NDArray[np.bool_] = np.ones(len(rows), dtype=bool)
        self._gone: list[int] = []  # of the base
        self._prepared: Prepared | None = None  # for rescoring, by number
        self._versioned: Prepared | None = None  # the base's rows, where its index scans none itself
        self._scanned: tuple[Int64Array, Prepared] | None = None  # the rows added since, when they were last scanned

    def __len__(self) -> int:
        return self._live

    @property
    def exact(self) -> bool:
        """Whether the answers are the true top-k."""
        return self.base is None or self.base.exact

    @property
    def published(self) -> int:
        """How many rows the version has."""
        return self._of_base

    @property
    def untouched(self) -> bool:
        """Whether the rows are those of the version."""
        return self._count == self._of_base and not self._gone

    @property
    def stray(self) -> int:
        """How many rows compaction would save or index: those gone, and those added."""
        return len(self._gone) + self._count - self._of_base

    @property
    def gone(self) -> int:
        """How many rows are searched over and left out; asks for no lock."""
        return self._count - self._live

    @property
    def prepared(self) -> Prepared:
        """All rows by number, for rescoring: it reads nothing else, and copies would have to be made anew at every addition."""
        with self.lock:
            if self._prepared is None:
                self._prepared = Prepared(self._rows[: self._count])
            return self._prepared

    def describe(self) -> dict[str, object]:
        """Return what the version's index says of itself, and how many rows were added and are gone."""
        of_base: dict[str, object] = (
            {"name": "none", "reason": "the version has no labels"} if self.base is None else self.base.describe()
        )
        return of_base if self.untouched else {**of_base, "added": self._count - self._of_base, "gone": self._count - len(self)}

    def warm(self) -> None:
        """Bring the version's index to full speed (`LabelIndex.warm`)."""
        with self.lock:
            if self.base is not None:
                self.base.warm()

    def change(self, rows: Tensor, gone: Iterable[int]) -> None:
        """Add `rows` float32 (n, D), numbered on from the last, and take out the rows `gone`."""
        with self.lock:
            self._make_room(len(rows))
            self._rows[self._count : self._count + len(rows)] = rows
            self._alive = np.concatenate([self._alive, np.ones(len(rows), dtype=bool)])
            self._count += len(rows)
            self._live += len(rows)
            for number in gone:
                assert self._alive[number], "a row goes once"
                self._alive[number] = False
                self._live -= 1
                if number < self._of_base:
                    self._gone.append(number)
            self._prepared = self._prepared if len(rows) == 0 else None
            self._scanned = None

    def is_live(self, numbers: Int64Array) -> npt.NDArray[np.bool_]:
        """Return whether each row is that of a live label, bool of the shape of `numbers`."""
        alive: npt.NDArray[np.bool_] = self._alive[numbers]
        return alive

    def snapshot(self, numbers: Int64Array) -> Tensor:
        """Return the rows `numbers`, float32 (n, D), in memory of their own."""
        return self._rows[torch.from_numpy(numbers)]

    def search(self, queries: Tensor, k: int, temperature: float, patience: Patience | None = None) -> TopK:
        """Return the k best live rows for `queries` float32 (B, D), as `LabelIndex.search` does."""
        with self.lock:
            if self.untouched and self.base is not None:
                return self.base.search(queries, k, temperature)
            parts = []
            if self.base is not None and self._of_base > len(self._gone):
                parts.append(self._search_base(queries, k, temperature))
            if self._alive[self._of_base :].any():
                parts.append(self._search_added(queries, k, temperature))
            if not parts:
                return _none(len(queries), k)
            return parts[0] if len(parts) == 1 else merged(parts)

    def search_published(self, queries: Tensor, k: int) -> TopK:
        """Return the k best of the version's rows, whatever was taken out since."""
        assert self.base is not None
        with self.lock:
            return self.base.search(queries, k, 1.0)

    def reranked(self, reranker: Reranker, queries: Tensor, found: TopK, temperature: float) -> TopK:
        """Return what `reranker` makes of candidates."""
        return reranker.rerank(queries, self.prepared, found, temperature)

    def rescore(self, queries: Tensor, ids: Tensor, temperature: float) -> TopK:
        """Return the rows `ids` int64 (B, K; −1 = none) by their exact score."""
        return self.kernels.rescore(queries, self.prepared, ids, temperature)

    def log_partition(self, queries: Tensor, temperature: float, found: TopK, patience: Patience | None = None) -> Tensor:
        """Return log Σ e^{s/τ} (B) over all live rows: `found`'s, where the search saw all of them, else from a scan."""
        if found.log_z is not None:
            return found.log_z
        with self.lock:
            own = None if self.base is None else self.base.prepared
            if self._versioned is None:
                self._versioned = own or self.kernels.prepare(self._rows[: self._of_base])
            log_z = self.kernels.scan(queries, self._versioned, 1, temperature).log_z
            assert log_z is not None
            log_z = self._without_gone(queries, log_z, temperature)
            if self._alive[self._of_base :].any():
                of_added = self._search_added(queries, 1, temperature).log_z
                assert of_added is not None
                log_z = torch.logaddexp(log_z, of_added)
            return log_z

    def _search_base(self, queries: Tensor, k: int, temperature: float) -> TopK:
        assert self.base is not None
        gone, spare = len(self._gone), min(len(self._gone), _FETCHED)
        while True:
            fetched = min(k + spare, self._of_base)
            found = self.base.search(queries, fetched, temperature)
            live = self._alive[found.ids.numpy()] & (found.ids.numpy() >= 0)
            full = live.sum(axis=1) >= min(k, self._of_base - gone)
            dry = (found.ids[:, -1] < 0).numpy()  # an approximate index that has no more
            if (full | dry).all() or spare == gone:
                break
            spare = min(gone, 4 * spare)
        order = torch.from_numpy(np.argsort(~live, axis=1, kind="stable")[:, :k].astype(np.int64))
        dead = torch.from_numpy(~live)
        ids, scores = (
            found.ids.masked_fill(dead, -1).gather(1, order),
            found.scores.masked_fill(dead, -torch.inf).gather(1, order),
        )
        log_z = None if found.log_z is None else self._without_gone(queries, found.log_z, temperature)
        return _padded(ids, scores, log_z, k)

    def _search_added(self, queries: Tensor, k: int, temperature: float) -> TopK:
        if self._scanned is None:
            numbers = self._of_base + np.flatnonzero(self._alive[self._of_base :]).astype(np.int64)
            self._scanned = numbers, self.kernels.prepare(self._rows[torch.from_numpy(numbers)], copy="none")
        numbers, prepared = self._scanned
        found = self.kernels.scan(queries, prepared, min(k, len(numbers)), temperature)
        return _padded(torch.from_numpy(numbers)[found.ids], found.scores, found.log_z, k)

    def _without_gone(self, queries: Tensor, log_z: Tensor, temperature: float) -> Tensor:
        """Return log Σ e^{s/τ} over the base's live rows, of that over all of them."""
        if not self._gone:
            return log_z
        of_gone = torch.logsumexp(queries @ self._rows[torch.tensor(self._gone)].T / temperature, dim=1)
        share = (of_gone - log_z).exp()
        kept = log_z + torch.log1p(-share.clamp(max=_TRUSTED))
        doubtful = torch.nonzero(~(share <= _TRUSTED))[:, 0]
        if len(doubtful):
            asked, sums = queries[doubtful], []
            for start in range(0, self._of_base, _BLOCK):
                scores = asked @ self._rows[start : min(start + _BLOCK, self._of_base)].T / temperature
                alive = torch.from_numpy(self._alive[start : start + scores.shape[1]])
                sums.append(torch.logsumexp(scores.masked_fill(~alive, -torch.inf).double(), dim=1))
            kept[doubtful] = torch.logsumexp(torch.stack(sums), dim=0).to(kept.dtype)
        return kept

    def _make_room(self, more: int) -> None:
        needed = self._count + more
        if needed > len(self._rows):
            # The version's rows are mapped from its file and stay as they are; these are memory of our own.
            room = torch.empty(max(needed, self._count + self._count // 4, self._count + _ROOM), self._rows.shape[1])
            room[: self._count] = self._rows[: self._count]
            on_huge_pages(room)
            self._rows = room


@dataclass(eq=False)
class Live:
    """Labels and rows as they are now, `writes` writes after `version` was published; `change` keeps them in step."""

    labels: LiveLabels
    index: ChangingIndex
    version: Version | None = None  # None for labels of no bundle
    writes: int = 0

    @property
    def name(self) -> str:
        """The version, and its writes: v000002+17."""
        version = "" if self.version is None else self.version.name
        return f"{version}+{self.writes}" if self.writes else version

    @property
    def recall(self) -> Recall | None:
        """What the version's training queries say, where it keeps some."""
        return None if self.version is None else self.version.recall

    def warm(self) -> None:
        """Bring all that searches to full speed (`LabelIndex.warm`)."""
        self.index.warm()
        if self.recall is not None:
            self.recall.warm()

    def change(self, changes: Sequence[Change], writes: int = 0) -> Changed:
        """Make `changes`, one after the other, visible to the next search; of several to one label the last counts.

        A deletion of what is not there does nothing. `writes` is how many writes of the log there are now.
        """
        last = {change.id: change for change in changes}
        gone: list[int] = []
        rows = []
        added = replaced = deleted = 0
        with self.index.lock:  # a search in between would see rows that have no labels
            for label, change in last.items():
                before = self.labels.drop(label) if change.row is None else self.labels.put(label, change.text)
                if before is not None:
                    gone.append(before)
                if change.row is not None:
                    rows.append(torch.from_numpy(np.array(change.row, dtype=np.float32)))
                    added, replaced = added + (before is None), replaced + (before is not None)
                else:
                    deleted += before is not None
            self.writes = writes
            self.index.change(torch.stack(rows) if rows else torch.empty(0, self.index.dimension), gone)
        return Changed(added, replaced, deleted)


def _padded(ids: Tensor, scores: Tensor, log_z: Tensor | None, k: int) -> TopK:
    missing = k - ids.shape[1]
    if missing <= 0:
        return TopK(ids, scores, log_z)
    pad = torch.nn.functional.pad
    return TopK(pad(ids, (0, missing), value=-1), pad(scores, (0, missing), value=-torch.inf), log_z)


def _none(batch: int, k: int) -> TopK:
    empty = torch.full((batch,), -torch.inf)
    return TopK(torch.full((batch, k), -1, dtype=torch.int64), torch.full((batch, k), -torch.inf), empty)
