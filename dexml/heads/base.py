"""What a head is: rows that stand still and their labels in, a weight vector for each label out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor

from dexml.types import Positives


class Head(ABC):
    """Linear outputs o = W·x. Options are keyword-only; rows without positives add nothing."""

    grid: ClassVar[Mapping[str, tuple[Any, ...]]]
    """The values worth trying of the options that a data set decides; the first are tried first."""

    @abstractmethod
    def stages(self, rows: Tensor, positives: Positives, start: Tensor) -> Iterator[Tensor]:
        """Yield W (L, D) for `rows` (N, D), float32: once, or after every epoch, from `start` (L, D) where that helps."""
