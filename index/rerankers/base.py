"""What a reranker is: candidates in, the same candidates in a better order out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from dexml.kernels import Prepared
from dexml.types import TopK

CANDIDATES = 200
Candidates = Annotated[int, Ge(1)]


class Reranker(ABC):
    """Turns an index's candidates into answers: a permutation of them, scores non-increasing, padding last."""

    candidates: int = CANDIDATES
    """How many an index is asked for, at least, where a search does not say."""

    @abstractmethod
    def rerank(self, queries: Tensor, prepared: Prepared, found: TopK, temperature: float) -> TopK:
        """Return `found` (B, K) for `queries` (B, D) over the label rows of `prepared`, reordered, with log_z over them."""
