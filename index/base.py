"""What a label index is: label embeddings in, candidates out; and what it is where labels come and go."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dexml.kernels import Kernels, Prepared
from dexml.types import Int64Array, TopK
from index.patience import Patience
from index.rerankers import Reranker


class LabelIndex(ABC):
    """Top-k by inner product over label rows (L, D). One thread owns an instance; options are keyword-only fields."""

    @abstractmethod
    def build(self, labels: Tensor) -> None:
        """Take the label rows, float32 (L, D) unit rows; row numbers are the ids that searches return."""

    @abstractmethod
    def search(self, queries: Tensor, k: int, temperature: float) -> TopK:
        """Return the k best rows for `queries` float32 (B, D); missing ones are −1 and −inf.

        `log_z` runs over all labels where the index sees all of them, and is None where it does not.
        """

    def check(self, labels: int, dimension: int) -> None:  # noqa: B027 — most indexes take any labels
        """Raise InputError when an index of `labels` rows of `dimension` cannot be built as the options ask."""

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether the answers are the true top-k."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return what was chosen and why (device, structure, kernel backend), for `/v1/info` and logs."""

    @property
    def prepared(self) -> Prepared | None:
        """The label rows as the kernels have them, where this index scans them itself; others need not prepare them twice."""
        return None

    def warm(self) -> None:  # noqa: B027 — most indexes are at full speed once they are loaded
        """Do now what is else put off until searches have shown that it pays: for whoever is about to search a lot."""

    def save(self, folder: Path) -> None:  # noqa: B027 — an index that rebuilds from the rows keeps no file
        """Write what cannot be rebuilt cheaply from the label rows; nothing by default."""

    def load(self, folder: Path, labels: Tensor) -> None:
        """Restore the index over `labels`, from its file in `folder` where it keeps one."""
        self.build(labels)


class ChangingIndex(ABC):
    """Top-k by inner product over rows that are added and taken out. Rows are numbered on, and no number is given again.

    Those of a version come first. Any thread may call; `lock` is held for what must be of one moment.
    """

    kernels: Kernels
    lock: threading.RLock
    dimension: int

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of live rows."""

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether the answers are the true top-k."""

    @property
    @abstractmethod
    def published(self) -> int:
        """How many rows the version has."""

    @property
    @abstractmethod
    def stray(self) -> int:
        """How many rows compaction would save or index: those gone, and those added."""

    @property
    @abstractmethod
    def gone(self) -> int:
        """How many rows are searched over and left out; asks for no lock."""

    @property
    def up(self) -> tuple[int, ...]:
        """How many copies of each shard answer."""
        return (1,)

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return what was chosen and why, for `/v1/info`."""

    def warm(self) -> None:  # noqa: B027 — as in `LabelIndex`
        """Do now what is else put off until searches have shown that it pays."""

    @abstractmethod
    def change(self, rows: Tensor, gone: Iterable[int]) -> None:
        """Add `rows` float32 (n, D), numbered on from the last, and take out the rows `gone`."""

    @abstractmethod
    def is_live(self, numbers: Int64Array) -> npt.NDArray[np.bool_]:
        """Return whether each row is that of a live label, bool of the shape of `numbers`."""

    @abstractmethod
    def snapshot(self, numbers: Int64Array) -> Tensor:
        """Return the rows `numbers`, float32 (n, D), in memory of their own."""

    @abstractmethod
    def search(self, queries: Tensor, k: int, temperature: float, patience: Patience | None = None) -> TopK:
        """Return the k best live rows for `queries` float32 (B, D), as `LabelIndex.search` does."""

    @abstractmethod
    def search_published(self, queries: Tensor, k: int) -> TopK:
        """Return the k best of the version's rows, whatever was taken out since."""

    @abstractmethod
    def log_partition(self, queries: Tensor, temperature: float, found: TopK, patience: Patience | None = None) -> Tensor:
        """Return log Σ e^{s/τ} (B) over all live rows: `found`'s, where the search saw all of them, else from a scan."""

    @abstractmethod
    def reranked(self, reranker: Reranker, queries: Tensor, found: TopK, temperature: float) -> TopK:
        """Return what `reranker` makes of candidates that `search` found."""

    @abstractmethod
    def rescore(self, queries: Tensor, ids: Tensor, temperature: float) -> TopK:
        """Return the rows `ids` int64 (B, K; −1 = none) sorted by their exact score, as `Kernels.rescore` does."""
