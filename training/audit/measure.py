"""The audit of a bundle on a split: pushes that reorder answers, lists that can be returned, and attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dexml.errors import InputError
from dexml.types import Int64Array, Positives, Split
from index.audit import MARGIN, Boundary, Push, boundaries, pushes
from index.base import ChangingIndex
from index.retriever import Retriever
from training.audit.attack import ITERATIONS, WAYS, Attacked, attack
from training.audit.inputs import Inputs
from training.evaluate import BATCH

LISTS = (1, 5, 10, 20, 50)  # K of the lists whose reachability is asked for
ATTACKED = (1, 5, 10)  # K of those that the attacks are after
RANK = 10  # of the label that is promoted where none is named
AT_ONCE = 16  # queries attacked at a time
RANDOM, NEAR = "random labels", "labels near the answer"

Told = Callable[[str, int, int], bool]
"""Hears a stage, what is done of it and of how much; says whether to stop."""


@dataclass(frozen=True)
class Asked:
    """What to audit: so many `queries`, drawn with `seed`, their first `top` labels, `attacked` of them attacked.

    `promote` is the row of a label to bring to the first place, by default each query's tenth label; `lists` are the K.
    """

    queries: int = 100
    top: int = 5
    attacked: int = 16
    promote: int | None = None
    seed: int = 0
    margin: float = MARGIN
    iterations: int = ITERATIONS
    lists: tuple[int, ...] = LISTS


@dataclass(frozen=True, eq=False)
class Reach:
    """What became of lists of `k` labels, of a `kind`: a push for each query."""

    kind: str
    k: int
    pushes: tuple[Push, ...]

    def count(self, verdict: bool | None) -> int:
        """Return how many lists are reachable (True), proved not to be (False), or undecided (None)."""
        return sum(push.reachable is verdict for push in self.pushes)


@dataclass(frozen=True, eq=False)
class Strike:
    """What one `way` of attack achieved against lists of `k` random labels."""

    way: str
    k: int
    attacked: Attacked


@dataclass(eq=False)
class Audit:
    """What was found, as far as the audit went: the `rows` of the split (N), and for each what is asked below.

    `orders` and `entries` are the nearest change of the first `top` labels and the nearest new label among them, in closed
    form; `moves` the pushes to certain lists, by name. `finished` is False where somebody stopped the audit.
    """

    asked: Asked
    rows: Int64Array
    orders: list[Boundary] = field(default_factory=list)
    entries: list[Boundary] = field(default_factory=list)
    moves: dict[str, list[Push]] = field(default_factory=dict)
    reach: list[Reach] = field(default_factory=list)
    strikes: list[Strike] = field(default_factory=list)
    finished: bool = False


def audit(retriever: Retriever, split: Split, own: Positives, asked: Asked, told: Told) -> Audit:
    """Return what the audit of a retriever with an exact index finds on `split`; `own` (N, rows) are its positives' rows.

    Training queries that lift scores are left out: what is audited are the label rows and the query tower. Raises InputError
    for a split without a query of which the model knows a word, and for fewer than three labels.
    """
    index = retriever.index
    if len(index) < 3:
        raise InputError("audit: the bundle has fewer than three labels")
    index.warm()
    random = np.random.default_rng(asked.seed)
    drawn = random.permutation(len(split))[: 2 * asked.queries]  # some may be of no known word
    queries = retriever.model.embed_queries([split.texts[row] for row in drawn.tolist()])[0]
    known = np.flatnonzero(queries.any(dim=1).numpy())[: asked.queries]
    if len(known) == 0:
        raise InputError("data: the model knows no word of any query")
    found = Audit(asked, drawn[known].astype(np.int64))
    auditor = _Auditor(found, retriever, split, queries[torch.from_numpy(known)], own, random, told)
    found.finished = auditor.fragility() and auditor.reachability() and auditor.attacks()
    return found


@dataclass(frozen=True, eq=False)
class _Auditor:
    """What every stage reads; a stage returns False where it was told to stop."""

    audit: Audit
    retriever: Retriever
    split: Split
    queries: Tensor
    own: Positives
    random: np.random.Generator
    told: Told

    @property
    def index(self) -> ChangingIndex:
        return self.retriever.index

    def fragility(self) -> bool:
        """Take each answer's nearest changes, and the pushes to certain lists."""
        asked, index = self.audit.asked, self.index
        top = min(asked.top, len(index) - 1)
        rank = min(RANK, len(index))
        promoted = f"number {rank} becomes the first" if asked.promote is None else "the one named becomes the first"
        for rows in _blocks(len(self.queries)):
            if self.told("pushes that reorder an answer", rows.start, len(self.queries)):
                return False
            block = self.queries[rows]
            orders, entries = boundaries(index, block, top)
            self.audit.orders += orders
            self.audit.entries += entries
            ids = index.search(block, max(top + 1, rank), 1.0).ids.numpy()
            lists = {}
            if top > 1:
                lists["the first two change places"] = np.concatenate([ids[:, 1::-1], ids[:, 2:top]], axis=1)
            lists[f"number {top + 1} takes place {top}"] = np.concatenate([ids[:, : top - 1], ids[:, top : top + 1]], axis=1)
            named = ids[:, rank - 1] if asked.promote is None else np.full(len(ids), asked.promote)
            lists[promoted] = named[:, None]
            for name, targets in lists.items():
                self.audit.moves.setdefault(name, []).extend(pushes(index, block, targets, asked.margin))
        return True

    def reachability(self) -> bool:
        """Try random lists, and lists of labels near the answer, of each length."""
        asked, index = self.audit.asked, self.index
        live = self.retriever.labels.live()
        ks = [k for k in asked.lists if 2 * k <= len(index)]
        total, done = 2 * len(ks) * len(self.queries), 0
        for kind in (RANDOM, NEAR):
            for k in ks:
                found: list[Push] = []
                for rows in _blocks(len(self.queries)):
                    if self.told("lists that can be returned", done, total):
                        return False
                    block = self.queries[rows]
                    pools = [live] * len(block) if kind == RANDOM else index.search(block, 2 * k, 1.0).ids.numpy()
                    targets = np.stack([self.random.choice(pool, k, replace=False) for pool in pools])
                    found += pushes(index, block, targets, asked.margin)
                    done += len(block)
                self.audit.reach.append(Reach(kind, k, tuple(found)))
        return True

    def attacks(self) -> bool:
        """Let each attack try lists of random labels that are not the query's own, the same for all."""
        asked, index = self.audit.asked, self.index
        rows = self.audit.rows[: asked.attacked]
        ks = [k for k in ATTACKED if k < len(index) - int(np.diff(self.own.indptr)[rows].max(initial=0))]
        total, done = len(ks) * len(WAYS) * len(rows) * asked.iterations, 0
        live = self.retriever.labels.live()
        for k in ks if len(rows) else []:
            targets = np.stack(
                [self.random.choice(np.setdiff1d(live, self.own.row(row)), k, replace=False) for row in rows.tolist()]
            )
            for name, way in WAYS.items():
                parts = []
                for start in range(0, len(rows), AT_ONCE):
                    block = slice(start, start + AT_ONCE)
                    inputs = Inputs(self.retriever.model, [self.split.texts[row] for row in rows[block].tolist()])

                    def step(size: int = len(inputs)) -> bool:
                        nonlocal done
                        done += size
                        return self.told(f"attacks on {len(rows)} queries", done - size, total)

                    found = attack(
                        inputs, index, targets[block], way, iterations=asked.iterations, seed=asked.seed + start, told=step
                    )
                    if found is None:
                        return False
                    parts.append(found)
                self.audit.strikes.append(Strike(name, k, Attacked.joined(parts)))
        return True


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BATCH, count)) for start in range(0, count, BATCH))


def rows_of(split: Split, numbers: Int64Array) -> Positives:
    """Return the positives of a split as rows of the index; `numbers` are the data set's of the index' rows, −1 for none."""
    rows = np.full(split.positives.num_labels, -1, dtype=np.int64)
    known = np.flatnonzero(numbers >= 0)
    rows[numbers[known]] = known
    of_queries = [rows[split.positives.row(row)] for row in range(len(split))]
    return Positives.from_rows([sorted(int(row) for row in of if row >= 0) for of in of_queries], len(numbers))


__all__ = ["ATTACKED", "LISTS", "NEAR", "RANDOM", "Asked", "Audit", "Reach", "Strike", "Told", "audit", "rows_of"]
