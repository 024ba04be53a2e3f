"""What an encoder is: texts in, features out, fitted once on the training texts; a fine-tune trains its network further."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from dexml.types import Bag, Features, Int64Array


class Network(ABC):
    """Texts -> unit rows through a torch module, differentiable: what a fine-tune trains through."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The module that holds the parameters."""

    @abstractmethod
    def lengths(self, texts: Sequence[str]) -> Int64Array:
        """Return how many tokens of each text are read (N)."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return what the module reads of N texts; the tensors among the values may be moved to its device."""

    @abstractmethod
    def rows(self, tokens: dict[str, Any]) -> Tensor:
        """Return unit rows (N, D) of `tokenize`d texts, which are not edited: float32, or float64 of a float64 module."""


class Encoder(ABC):
    """Texts -> features. The same text gives the same features in any batch; options are keyword-only fields."""

    gives: ClassVar[frozenset[str]]
    """The parts of `Features` that it gives: "bag", "dense" or both."""
    tunable: ClassVar[bool] = False
    """Whether its dense features come from a network that can be trained."""

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

    def network(self) -> Network:
        """Return what makes the dense features. Raises ValueError where the class is not `tunable`."""
        raise ValueError(f"{type(self).__name__} has no network to train")

    def bags(self, texts: Sequence[str]) -> Bag | None:
        """Return the sparse features of N texts, which a fine-tune leaves as they are, or None where there are none."""
        return self.encode(texts).bag

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
