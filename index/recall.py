"""Retrieval-augmented answers: labels of the training queries nearest to a query are lifted (RAE-XMC, PEFA; docs/adr/0009).

Of a query, s are the labels' cosines and c those of its k nearest training queries; each of these has labels P_i:

    m_l  = Σ_i softmax(c/τ_m)_i · [l ∈ P_i] / |P_i|            what the memory says of a label, a distribution over labels
    s'_l = τ · log(e^{s_l/τ} + λ·Z·m_l),  Z = Σ e^{s/τ}     the score whose softmax is (softmax(s/τ) + λ·m) / (1 + λ)

Z runs over the 200 best labels, whatever is asked for and whichever index answers, so that an order depends on the query alone.
Labels of which the memory says nothing keep their score.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from dexml.manifest import MemoryFacts
from dexml.memory import Memory
from dexml.types import Int64Array, TopK
from index.exact import ExactIndex

if TYPE_CHECKING:
    from dexml.bundle import Bundle
    from index.base import ChangingIndex

Float64Array = npt.NDArray[np.float64]
REFERENCE = 200  # labels that Z runs over
REASONS = 3  # training queries named for a label
_ROW = 1 << 32  # above any label's number


class Reason(NamedTuple):
    """A training query that a label belongs to, and its cosine with the query."""

    text: str
    similarity: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a memory says of labels: `mass` float64 (n) of the pairs `keys` = query · 2³² + label, int64 (n), ascending."""

    keys: Int64Array
    mass: Float64Array

    def of(self, ids: Int64Array) -> Float64Array:
        """Return the mass of the labels `ids` (B, K), 0 of those it says nothing of and where there is none (−1)."""
        if len(self.keys) == 0:
            return np.zeros(ids.shape)
        keys = _keys(ids)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where((ids >= 0) & (self.keys[places] == keys), self.mass[places], 0.0)

    def beyond(self, ids: Int64Array) -> Int64Array:
        """Return its labels that are not among `ids` (B, K), int64 (B, M), each row padded with −1."""
        left = np.setdiff1d(self.keys, _keys(ids)[ids >= 0], assume_unique=True)
        rows, labels = np.divmod(left, _ROW)
        counts = np.bincount(rows, minlength=len(ids))
        table = np.full((len(ids), int(counts.max(initial=0))), -1, dtype=np.int64)
        table[rows, np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)] = labels
        return table


class Recall:
    """The memory of a version, searched by an exact index; `facts` say how many neighbours are heard, and what they weigh.

    `temperature` is that of the bundle: it decides the order of the answers, whatever a request asks of their probabilities.
    """

    def __init__(self, memory: Memory, facts: MemoryFacts, temperature: float) -> None:
        self.memory = memory
        self.facts = facts
        self.temperature = temperature
        self._index = ExactIndex()
        self._index.build(memory.rows)

    @staticmethod
    def of(bundle: Bundle) -> Recall | None:
        """Return the recall of a bundle's version, None where it keeps no training queries."""
        memory, manifest = bundle.memory, bundle.manifest
        return None if memory is None or manifest.memory is None else Recall(memory, manifest.memory, manifest.temperature)

    @property
    def speaks(self) -> bool:
        """Whether answers change by it."""
        return self.facts.weight > 0

    def warm(self) -> None:
        """Bring the search to full speed (`LabelIndex.warm`)."""
        self._index.warm()

    def augment(
        self, queries: Tensor, topk: TopK, live: ChangingIndex, temperature: float, log_z: Tensor | None = None
    ) -> tuple[TopK, Tensor | None]:
        """Return `topk` (B, K) and all labels that the memory speaks for, lifted and sorted anew; log_z runs over these.

        `topk` are exact scores, at least REFERENCE of them where there are as many labels. With a `log_z` (B) over all labels'
        cosines, return beside it that over all labels' lifted scores.
        """
        said = self.evidence(queries, live, self.facts.neighbours, self.facts.temperature)
        ids, scores = self.joined(queries, topk, said, live)
        lifted = self.lifted(scores, said.of(ids), topk, self.facts.weight)
        order = ordered(ids, lifted)
        best = torch.from_numpy(np.take_along_axis(lifted, order, axis=1))
        sums = torch.logsumexp(best / temperature, dim=1).float()
        answer = TopK(torch.from_numpy(np.take_along_axis(ids, order, axis=1)), best.float(), sums)
        if log_z is None:
            return answer, None
        rise = np.subtract(lifted, scores, out=np.zeros_like(scores), where=lifted > scores) / temperature
        with np.errstate(divide="ignore"):  # where nothing rises: log 0
            added = scores / temperature + rise + np.log(-np.expm1(-rise))  # log(e^{s'/τ} − e^{s/τ})
        more = torch.logsumexp(torch.from_numpy(added), dim=1)
        return answer, torch.logaddexp(log_z.double(), more).float()

    def evidence(self, queries: Tensor, live: ChangingIndex, neighbours: int, temperature: float) -> Evidence:
        """Return m for `queries` (B, D): of labels that are live, over the `neighbours` nearest training queries."""
        found = self._index.search(queries, min(neighbours, len(self.memory)), 1.0)
        near = found.ids.numpy()  # (B, k)
        weights = torch.softmax(found.scores.double() / temperature, dim=1).numpy().ravel()
        positives = self.memory.positives.take(near.ravel())
        owner = np.repeat(np.arange(near.size), np.diff(positives.indptr))
        alive = live.is_live(positives.indices) if len(positives.indices) else np.zeros(0, dtype=bool)
        owner, labels = owner[alive], positives.indices[alive]
        sizes = np.bincount(owner, minlength=near.size)
        keys = owner // near.shape[1] * _ROW + labels
        order = np.argsort(keys, kind="stable")
        unique, starts = np.unique(keys[order], return_index=True)
        share = (weights[owner] / sizes[owner])[order]
        mass = np.add.reduceat(share, starts) if len(starts) else np.zeros(0)
        return Evidence(unique, mass)

    def joined(self, queries: Tensor, topk: TopK, said: Evidence, live: ChangingIndex) -> tuple[Int64Array, Float64Array]:
        """Return the ids and cosines of `topk`, and beside them of all other labels that the memory speaks for, (B, K + M)."""
        beyond = said.beyond(topk.ids.numpy())
        if beyond.shape[1] == 0:
            return topk.ids.numpy(), topk.scores.double().numpy()
        more = live.rescore(queries, torch.from_numpy(beyond), 1.0)
        ids = torch.cat([topk.ids, more.ids], dim=1).numpy()
        return ids, torch.cat([topk.scores, more.scores], dim=1).double().numpy()

    def lifted(self, scores: Float64Array, mass: Float64Array, topk: TopK, weight: float) -> Float64Array:
        """Return s' (B, K') of `scores` and their mass; `topk` holds the labels that Z runs over."""
        z = torch.logsumexp(topk.scores[:, :REFERENCE].double() / self.temperature, dim=1, keepdim=True).numpy()
        with np.errstate(divide="ignore"):  # log 0 = −∞, the neutral element of logaddexp
            spoken = np.log(weight * mass) + z
        return np.where(mass > 0, self.temperature * np.logaddexp(scores / self.temperature, spoken), scores)

    def why(self, queries: Tensor, ids: Tensor) -> list[list[list[Reason]]]:
        """Return, for each label of `ids` (B, K), its nearest training queries, at most REASONS texts, the nearest first.

        All that carry the label are looked at, whether or not they were among the neighbours that lifted it.
        """
        assert self.memory.texts is not None, "asked for where texts are kept"
        return [self._why_row(query, row, self.memory.texts) for query, row in zip(queries, ids.numpy(), strict=True)]

    def _why_row(self, query: Tensor, labels: Int64Array, texts: tuple[str, ...]) -> list[list[Reason]]:
        of_label = self._by_label
        known = (labels >= 0) & (labels < self.memory.positives.num_labels)
        numbers = np.where(known, labels, 0)
        counts = np.where(known, of_label.indptr[numbers + 1] - of_label.indptr[numbers], 0)
        place = np.repeat(np.arange(len(labels)), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        carriers = of_label.indices[np.repeat(of_label.indptr[numbers], counts) + within]
        unique, back = np.unique(carriers, return_inverse=True)
        cosines = (self.memory.rows[torch.from_numpy(unique.astype(np.int64))] @ query).numpy()[back]
        reasons: list[list[Reason]] = [[] for _ in labels]
        for number in np.lexsort((carriers, -cosines, place)).tolist():
            own, text = reasons[place[number]], texts[carriers[number]]
            if len(own) < REASONS and all(text != reason.text for reason in own):
                own.append(Reason(text, float(cosines[number])))
        return reasons

    @cached_property
    def _by_label(self) -> sp.csc_array:
        return self.memory.positives.matrix().tocsc()


def _keys(ids: Int64Array) -> Int64Array:
    """Return query · 2³² + label of the labels `ids` (B, K)."""
    return np.arange(len(ids), dtype=np.int64)[:, None] * _ROW + ids


def ordered(ids: Int64Array, scores: Float64Array) -> Int64Array:
    """Return the places (B, K) by float32 score descending, then id ascending, missing ones last."""
    return np.lexsort((ids, -scores.astype(np.float32)), axis=1).astype(np.int64)
