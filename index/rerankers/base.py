"""What a reranker is: candidates in, the same candidates in a better order out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from dexml.kernels import Prepared
from dexml.types import TopK


class Reranker(ABC):
    """Turns an index's candidates into answers: a permutation of them, scores non-increasing, padding last."""

    @abstractmethod
    def rerank(self, queries: Tensor, prepared: Prepared, found: TopK, temperature: float) -> TopK:
        """Return `found` (B, K) for `queries` (B, D) over the label rows of `prepared`, reordered, with log_z over them."""
