"""What a training loss is: embeddings of queries and of all labels in, one scalar out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from dexml.types import Positives


class Loss(ABC):
    """A loss over all labels. Options are keyword-only; rows without positives add nothing; inputs are never edited."""

    @abstractmethod
    def __call__(self, queries: Tensor, labels: Tensor, positives: Positives) -> Tensor:
        """Return the scalar loss of `queries` (B, D) against `labels` (L, D), differentiable in both."""
