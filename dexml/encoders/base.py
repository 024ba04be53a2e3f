"""What an encoder is: texts in, features out, fitted once on the training texts and fixed from then on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from dexml.types import Features


class Encoder(ABC):
    """Texts -> features. The same text gives the same features in any batch; options are keyword-only fields."""

    gives: ClassVar[frozenset[str]]
    """The parts of `Features` that it gives: "bag", "dense" or both."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """How many tokens of a text are read; what follows is cut, and `Features.tokens` tells."""

    @abstractmethod
    def fit(self, texts: Sequence[str]) -> None:
        """Learn what the features need (a vocabulary, document frequencies) from the training and label texts."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Features:
        """Return the features of N texts, with the number of tokens of each."""

    def encode_many(self, texts: Sequence[str]) -> Features:
        """Return the features of many texts for training: by a faster, slightly coarser way where there is one."""
        return self.encode(texts)

    @abstractmethod
    def width(self) -> int:
        """Return the number of sparse features, or the width of the dense ones where there are no sparse ones."""

    def dense_width(self) -> int:
        """Return the width of the dense features."""
        return self.width()

    def initial_rows(self, dimension: int) -> Tensor | None:
        """Return float32 (width, dimension) to start a feature table from, or None where there is none to be had."""
        return None

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything but the options into `folder`."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read back what `save` wrote."""
