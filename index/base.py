"""What a label index is: label embeddings in, candidates out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from torch import Tensor

from dexml.kernels import Prepared
from dexml.types import TopK


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
