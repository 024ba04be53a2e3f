"""THE query path: encode → search → rerank → recall. Service and evaluation both go through it and through nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dexml.bundle import Bundle
from dexml.calibration import Calibration
from dexml.errors import InputError
from dexml.model import DualEncoder
from dexml.text import text_fault
from dexml.types import LabelTable, TopK
from index.base import ChangingIndex
from index.diversity import Diversity, diversified
from index.embedded import Embedded, embed
from index.live import Live, LiveLabels
from index.patience import Patience
from index.recall import REFERENCE, Reason
from index.store import Spread, Store, version_of

Normalize = Literal["none", "topk", "all", "sigmoid", "calibrated"]


@dataclass(frozen=True, eq=False)
class Found:
    """Answers for B queries with the normaliser they were asked with.

    `topk.ids` are rows of `labels`, of which `size` were live in `version` of `model`. `topk.log_z` runs over what
    `normalizer` names: "topk" the candidates, "all" every label. `seconds` has the keys encode, retrieve and rescore. Per
    query (B): `tokens` counts what the text holds, `truncated` says whether a part of it was cut, `rescored` how many
    candidates there were, `why` has the training queries that speak for each answer (K), where they were asked for, and
    `known` is False where the model knows no word of the text: its row is 0 then, every label would score the same, and
    nothing is answered.

    Scores are cosines; where training queries have a say, those of the labels that they speak for are lifted (`index.recall`).
    `ranks` (B, K) are what diverse answers are in the order of; None where that is their scores. With "calibrated",
    `calibration` makes the probabilities, and `temperature` is its own. `chances` (B, K) are those where they were computed
    before, for all queries of a batch at once. Of `shards` that hold the labels, `missing` did not answer, and their labels
    stay out.
    """

    topk: TopK
    normalizer: Normalize
    temperature: float
    exact: bool
    labels: LiveLabels | LabelTable
    size: int
    version: str
    model: str
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    truncated: tuple[bool, ...] = ()
    known: tuple[bool, ...] = ()
    rescored: tuple[int, ...] = ()
    why: tuple[list[list[Reason]], ...] = ()
    ranks: Tensor | None = None
    shards: int = 1
    missing: int = 0
    calibration: Calibration | None = None
    chances: Tensor | None = None

    def probabilities(self) -> Tensor | None:
        """Return float32 (B, K) in the sense of the normaliser, or None when none was wanted, or not all labels were seen."""
        if self.chances is not None:
            return self.chances
        if self.normalizer == "none" or (self.normalizer == "all" and self.missing):
            return None
        if self.normalizer == "sigmoid":
            return torch.sigmoid(self.topk.scores / self.temperature)
        if self.calibration is not None:
            log_z = None if self.topk.log_z is None else self.topk.log_z.numpy()
            return torch.from_numpy(self.calibration.of(self.topk.scores.numpy(), log_z)).float()
        return self.topk.probabilities(self.temperature)


@dataclass(frozen=True)
class _How:
    """The keywords of a search."""

    candidates: int | None
    temperature: float | None
    normalize: Normalize
    diversity: Diversity | None
    why: bool
    patience: Patience | None


class Retriever:
    """A bundle ready to answer. One thread at a time: the index and the kernels are not made for more."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.kernels = store.live.index.kernels

    @staticmethod
    def open(path: Path, index: str | None = None, *, writable: bool = False, spread: Spread | None = None) -> Retriever:
        """Return a retriever over the bundle at `path`; `index` names another index than the bundle's own.

        With `writable`, `store` takes writes, which the next search sees; one process at a time may. `spread` is as in `Store`.
        """
        return Retriever(Store.open(path, index=index, writable=writable, spread=spread))

    @property
    def bundle(self) -> Bundle:
        """The current version: what was last published."""
        return self.store.bundle

    @property
    def model(self) -> DualEncoder:
        """The model of the current version."""
        return self.store.version.model

    @property
    def temperature(self) -> float:
        """τ of the current version, where a search names none."""
        return self.bundle.manifest.temperature

    @property
    def exact(self) -> bool:
        """Whether the answers are the true top-k."""
        return self.index.exact

    @property
    def index(self) -> ChangingIndex:
        """What searches."""
        return self.store.live.index

    @property
    def labels(self) -> LiveLabels:
        """The labels as they are now, by row number."""
        return self.store.live.labels

    def warm(self) -> None:
        """Bring the index to full speed, for whoever is about to search a lot."""
        self.store.warm()

    @property
    def dimension(self) -> int:
        """The width D of the embeddings."""
        return self.bundle.manifest.dimension

    @property
    def divisible(self) -> bool:
        """Whether an answer without some labels is right for the others: not where training queries lift them, by all of Z."""
        return self.store.live.recall is None or not self.store.live.recall.speaks

    @property
    def calibration(self) -> Calibration | None:
        """What the current version's scores mean as probabilities, where that was fitted."""
        return self.bundle.calibration

    @property
    def remembered(self) -> int:
        """How many training queries are kept with their texts, and so can be named as reasons; 0 without."""
        kept = self.bundle.manifest.memory
        return kept.queries if kept is not None and kept.texts else 0

    def describe(self) -> dict[str, object]:
        """Return what answers, in JSON's terms: model, sizes, index, kernels, temperature."""
        manifest = self.bundle.manifest
        return {
            "model": self.bundle.name,
            "version": self.store.name,
            "labels": len(self.labels),
            "dimension": self.dimension,
            "encoder": self.model.encoder_name,
            "max_tokens": self.model.encoder.max_tokens,
            "index": self.index.describe(),
            "kernels": type(self.kernels).__name__,
            "reranker": manifest.rerank.name,
            "temperature": self.temperature,
            "created": manifest.created,
            "dexml": manifest.dexml,
            "training": {
                "format": manifest.data.format,
                "rows": manifest.data.train_rows,
                "steps": manifest.training.step,
                "finished": manifest.training.finished,
                "commit": manifest.training.commit,
            },
            "examples": list(manifest.examples),
            "memory": self.remembered,
            "calibration": None if self.calibration is None else self.calibration.about(),
            "recall": None if manifest.memory is None else manifest.memory.model_dump(mode="json"),
        }

    def search(
        self,
        texts: Sequence[str],
        k: int,
        *,
        candidates: int | None = None,
        temperature: float | None = None,
        normalize: Normalize = "topk",
        diversity: Diversity | None = None,
        why: bool = False,
        patience: Patience | None = None,
    ) -> Found:
        """Return the k best labels of each text; see `search_embeddings`. Raises InputError for an empty text."""
        for number, text in enumerate(texts):
            if fault := text_fault(text):
                raise InputError(f"query {number}: the text {fault.words}")
        live = self.store.live  # one version's model, rows and temperature from here on, whatever is activated meanwhile
        model = version_of(live).model
        start = time.perf_counter()
        queries, tokens = model.embed_queries(texts)
        encode = time.perf_counter() - start
        found = _search(live, queries, k, _How(candidates, temperature, normalize, diversity, why, patience))
        limit = model.encoder.max_tokens
        counts = tuple(int(count) for count in tokens)
        return replace(
            found,
            seconds={"encode": encode, **found.seconds},
            tokens=counts,
            truncated=tuple(count > limit for count in counts),
        )

    def search_embeddings(
        self,
        queries: Tensor,
        k: int,
        *,
        candidates: int | None = None,
        temperature: float | None = None,
        normalize: Normalize = "topk",
        diversity: Diversity | None = None,
        why: bool = False,
        patience: Patience | None = None,
    ) -> Found:
        """Return the k best labels of unit rows `queries` float32 (B, D).

        `candidates` is how many the index is asked for before rescoring: at least k, and 200 where a memory has a say; None
        is what the bundle's reranker says. `temperature` changes probabilities, never the order; `diversity` changes the order
        in which the candidates are chosen from, never a probability; `why` asks for the training queries that speak for each
        answer; `patience` is for shards, which may be slow (`index.shards.TooLate`) or missing (`ShardsMissing`). With fewer
        labels than k there are as many answers as labels. Raises InputError for k < 1, a temperature ≤ 0, a σ ≤ 0, an unknown
        normaliser, and for `why` where the bundle keeps no texts of training queries.
        """
        return _search(self.store.live, queries, k, _How(candidates, temperature, normalize, diversity, why, patience))

    def embed(self, queries: Sequence[str] = (), labels: Sequence[str] = (), ids: Sequence[str] = ()) -> Embedded:
        """Return the rows of texts read as queries and as labels are, and of the labels named, all of one version."""
        return embed(self.store.live, queries, labels, ids)


def _search(live: Live, queries: Tensor, k: int, how: _How) -> Found:
    version = version_of(live)
    manifest = version.bundle.manifest
    calibration = version.bundle.calibration if how.normalize == "calibrated" else None
    temperature = manifest.temperature if how.temperature is None else how.temperature
    if calibration is not None and how.temperature is None:
        temperature = calibration.temperature
    _check(k, how, temperature, live)
    if queries.ndim != 2 or queries.shape[1] != manifest.dimension:
        raise InputError(f"embeddings must be (B, {manifest.dimension}), got {tuple(queries.shape)}")
    start = time.perf_counter()
    recall = live.recall if live.recall is not None and live.recall.speaks else None
    ranks = None
    patience = how.patience or Patience()
    with live.index.lock:  # search, rows and normaliser are of one moment
        k = min(k, len(live.labels))
        wanted = version.reranker.candidates if how.candidates is None else how.candidates
        fetched = max(wanted, 0 if recall is None else REFERENCE)
        found = live.index.search(queries, max(k, min(fetched, len(live.labels))), temperature, patience)
        retrieved = time.perf_counter()
        topk = live.index.reranked(version.reranker, queries, found, temperature)
        over_all = how.normalize == "all" or (calibration is not None and calibration.needs_log_z)
        log_z = live.index.log_partition(queries, temperature, found, patience) if over_all else None
        if recall is not None:
            topk, log_z = recall.augment(queries, topk, live.index, temperature, log_z)
        rescored = (topk.ids >= 0).sum(dim=1)
        if how.diversity is not None:
            rows = (live.labels.row(name) for name in how.diversity.hidden)
            hidden = np.array([row for row in rows if row is not None], dtype=np.int64)
            topk, ranks = diversified(topk, k, how.diversity, live.index.snapshot, hidden, manifest.temperature)
        topk = topk.first(k)
        if log_z is not None:
            topk = TopK(topk.ids, topk.scores, log_z)
        size, name = len(live.labels), live.name
    known = queries.any(dim=1)
    if not bool(known.all()):
        unknown = ~known[:, None]
        topk = TopK(topk.ids.masked_fill(unknown, -1), topk.scores.masked_fill(unknown, -math.inf), topk.log_z)
    return Found(
        topk,
        how.normalize,
        temperature,
        live.index.exact and not patience.missing,
        live.labels,
        size,
        name,
        version.bundle.name,
        {"retrieve": retrieved - start, "rescore": time.perf_counter() - retrieved},
        known=tuple(known.tolist()),
        rescored=tuple(rescored.tolist()),
        why=tuple(live.recall.why(queries, topk.ids)) if how.why and live.recall is not None else (),
        ranks=ranks,
        shards=len(live.index.up),
        missing=len(patience.missing),
        calibration=calibration,
    )


def _check(k: int, how: _How, temperature: float, live: Live) -> None:
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature must be above 0, got {temperature}")
    if how.normalize not in get_args(Normalize):
        raise InputError(f"normalize must be one of {', '.join(get_args(Normalize))}, got {how.normalize!r}")
    if how.normalize == "calibrated":
        if version_of(live).bundle.calibration is None:
            raise InputError(f"bundle: {version_of(live).name} has no calibration; `dexml calibrate` fits one")
        if how.temperature is not None:
            raise InputError("temperature: calibrated probabilities have their own")
    if how.diversity is not None and not how.diversity.sigma > 0:
        raise InputError(f"the σ of diversity must be above 0, got {how.diversity.sigma}")
    if how.why and (live.recall is None or live.recall.memory.texts is None):
        raise InputError(f"bundle: {version_of(live).name} keeps no texts of training queries that could say why")
