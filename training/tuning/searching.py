"""The settings of a search, tried on a bundle through the path that serves: the index's options, and `candidates`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from data.validation import split_by_labels
from dexml.bundle import Bundle, extend
from dexml.device import import_faiss
from dexml.errors import InputError
from dexml.manifest import Row
from dexml.metrics import precision_at
from dexml.table import unknown
from dexml.types import Int64Array, Split
from index import INDEXES, canary
from index.distances import distances
from index.faiss_index import SETTINGS, FaissIndex
from index.live import LiveIndex
from index.retriever import Retriever
from training.config import ValidationSection
from training.recall_cli import rows_of
from training.tuning.goals import Figures
from training.tuning.space import Settings, Space
from training.tuning.study import Seen

if TYPE_CHECKING:
    from data.format import Format

BATCH = 32  # queries at a time, as a busy service has them
MOST = 500  # queries
CANDIDATES = "candidates"


class Searches:
    """A bundle's answers to the rows `watched`, of which `top_k` labels each count, under settings to try.

    On the CPU, whatever device the bundle's index names: FAISS counts distances there alone. Raises InputError where labels
    were added or deleted, and where there is nothing to ask.
    """

    def __init__(self, bundle: Path, watched: Split, top_k: int = 10) -> None:
        self.retriever = Retriever.open(bundle, index="exact")
        live = self.retriever.index
        if not isinstance(live, LiveIndex) or not live.untouched:
            raise InputError(f"bundle: labels of {bundle} have been added or deleted; `dexml index {bundle} --compact` first")
        self.live, self.exact, self.row = live, live.base, self.retriever.bundle.manifest.index
        self.top_k = min(top_k, len(live))
        places = np.unique(np.linspace(0, len(watched) - 1, min(len(watched), MOST)).astype(np.int64))
        rows = watched.take(places)
        queries = self.retriever.model.embed_queries(rows.texts)[0]
        known = np.flatnonzero(queries.any(dim=1).numpy())
        if not len(known) or not self.top_k:
            raise InputError("data: there is no row to ask, or no label to find")
        self.queries, self.positives = queries[torch.from_numpy(known)], rows.positives.take(known)
        self._built: dict[str, tuple[FaissIndex, int]] = {}  # with the bytes that they take

    @property
    def present(self) -> dict[str, Any]:
        """The settings that the bundle has now."""
        kept = INDEXES.options("faiss", self._own) if self.row.name == "faiss" else {}
        return {**kept, CANDIDATES: self.retriever.store.version.reranker.candidates}

    def check(self, space: Space) -> None:
        """Raise InputError for a key that is no setting of a search, and for a value that cannot be."""
        known = [CANDIDATES, *INDEXES.options("faiss", {})]
        for key, values in space.axes.items():
            if key not in known or key == "device":
                raise unknown("setting of a search", key, [name for name in known if name != "device"])
            for value in values:
                if key != CANDIDATES:
                    INDEXES.options("faiss", {key: value})
                elif not isinstance(value, int) or value < self.top_k:
                    raise InputError(f"--space: candidates must be at least {self.top_k}, the labels asked for, got {value}")
        if self.row.name != "faiss" and "factory" not in space.axes:
            raise InputError(
                f"bundle: its index is {self.row.name!r}, which has nothing to tune; name structures to build, such as "
                """--space 'factory="IVF256,Flat","HNSW32"'"""
            )

    def usual(self) -> Space:
        """Return the space to search where none is given: what the bundle's structure has, by powers of two."""
        factory, axes = str(self.row.options.get("factory", "")), []
        if "IVF" in factory:
            lists = import_faiss().try_extract_index_ivf(self._index({}).structure).nlist
            axes.append(_doubled("nprobe", 1, lists))
        if "HNSW" in factory:
            axes.append(_doubled("ef_search", 8, 1024))
        axes.append(_doubled(CANDIDATES, self.top_k, min(len(self.live), 64 * self.top_k)))
        return Space.of(axes)

    def __call__(self, settings: Settings, seen: Seen = lambda epoch, figures: None) -> Figures:
        """Return the figures of `settings`; those that are not named are the bundle's."""
        candidates = int(settings.get(CANDIDATES, self.present[CANDIDATES]))
        index = self.structure(settings)
        answers: list[Int64Array] = []

        def ask() -> int:
            answers[:] = [self._asked(some, candidates) for some in torch.split(self.queries, BATCH)]
            return len(self.queries)

        compared = distances(index, ask)
        seconds = min(_timed(ask) for _ in range(2))
        ranked = np.concatenate(answers)
        rescored = min(candidates, len(self.live))
        return {
            "recall": float((ranked[:, :, None] == self.true[:, None, :]).any(axis=2).sum() / self.true.size),
            **{f"P@{k}": float(precision_at(ranked, self.positives, k)) for k in (1, 3, 5) if k <= self.top_k},
            "cost": compared / len(self.queries) + rescored,
            "latency": 1000 * seconds / len(self.queries),
            "memory": next(size for built, size in self._built.values() if built is index) / 1e6,
        }

    @cached_property
    def true(self) -> Int64Array:
        """What the exact index answers, int64 (N, top_k)."""
        self.live.base = self.exact
        return np.concatenate([self._asked(some, self.top_k) for some in torch.split(self.queries, BATCH)])

    def structure(self, settings: Settings) -> FaissIndex:
        """Return the index that `settings` name; from now on it answers."""
        self.live.base = index = self._index(_of_index(settings))
        return index

    def keeps_structure(self, settings: Settings) -> bool:
        """Whether `settings` leave the bundle's structure as it is."""
        return self._is_own(INDEXES.options("faiss", {**self._own, **_of_index(settings)}))

    def rows(self, settings: Settings) -> tuple[Row, Row]:
        """Return the manifest's rows of index and reranker with `settings`."""
        options = {**self._own, **_of_index(settings)}
        rerank = self.retriever.bundle.manifest.rerank
        wanted = {CANDIDATES: settings[CANDIDATES]} if CANDIDATES in settings else {}
        return Row(name="faiss", **options), Row(name=rerank.name, **{**rerank.options, **wanted})

    def _asked(self, queries: Tensor, candidates: int) -> Int64Array:
        return self.retriever.search_embeddings(queries, self.top_k, candidates=candidates, normalize="none").topk.ids.numpy()

    def _index(self, settings: Mapping[str, Any]) -> FaissIndex:
        """Return the bundle's structure, or one built, set to explore as `settings` and else the bundle say."""
        options = {**INDEXES.options("faiss", {**self._own, **settings}), "device": "cpu"}
        key = _structure(options)
        if key not in self._built:
            rows = self.retriever.bundle.embeddings
            index = INDEXES.build("faiss", options)
            assert isinstance(index, FaissIndex)
            index.check(*rows.shape)
            if self._is_own(options):
                index.load(self.retriever.bundle.index_folder, rows)
            else:
                index.build(rows)
            self._built[key] = index, import_faiss().serialize_index(index.structure).nbytes
        index, _ = self._built[key]
        index.explore(**{name: options[name] for name in SETTINGS})
        return index

    @property
    def _own(self) -> dict[str, Any]:
        """The options of the bundle's index, where it is one of FAISS."""
        return self.row.options if self.row.name == "faiss" else {}

    def _is_own(self, options: Mapping[str, Any]) -> bool:
        """Whether options ask for the structure that the bundle has."""
        return self.row.name == "faiss" and _structure(options) == _structure(INDEXES.options("faiss", self._own))


def watched_rows(bundle: Bundle, files: Format, split: str | None) -> Split:
    """Return the rows of `split`, over the bundle's labels; by default those of train that its training held out.

    After a refit the model has seen these too: figures are then too high for all settings alike.
    """
    if split is not None:
        return rows_of(files, split, bundle.labels)
    rows = rows_of(files, "train", bundle.labels)
    config = bundle.manifest.training.config
    section = ValidationSection.model_validate(config.get("validation", {}))
    fraction = section.fraction or ValidationSection().fraction
    _, held = split_by_labels(files.read("train").positives, fraction, config.get("seed", 0), section.max_rows)
    return rows.take(held) if len(held) else rows


def keep(bundle: Path, searches: Searches, settings: Settings) -> Path:
    """Publish the bundle with `settings` and return the version's folder; a structure is written only where it is another.

    Raises InputError where the settings do not find what the bundle's canaries are known to be answered with.
    """
    row, rerank = searches.rows(settings)
    index = searches.structure(settings)
    canary.check(searches.retriever.store.live)

    def add(folder: Path) -> None:
        if not searches.keeps_structure(settings):
            shutil.rmtree(folder / "index")
            (folder / "index").mkdir()
            index.save(folder / "index")

    return extend(bundle, add, {"index": row, "rerank": rerank}).root


def _of_index(settings: Settings) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != CANDIDATES}


def _structure(options: Mapping[str, Any]) -> str:
    """Return what decides an index's structure; the rest is set anew for each search."""
    return repr({key: value for key, value in options.items() if key not in SETTINGS and key != "device"})


def _doubled(key: str, first: int, most: int) -> str:
    values = [first << power for power in range(32) if first << power < most]
    return f"{key}={','.join(map(str, [*values, most]))}"


def _timed(ask: Callable[[], object]) -> float:
    start = time.perf_counter()
    ask()
    return time.perf_counter() - start
