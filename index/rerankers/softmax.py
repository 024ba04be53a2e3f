"""The default: candidates rescored from the float32 rows by the fused kernel, with the softmax over them."""

from __future__ import annotations

from torch import Tensor

from dexml.kernels import Kernels, Prepared
from dexml.types import TopK
from index.rerankers.base import CANDIDATES, Candidates, Reranker


class SoftmaxReranker(Reranker):
    """Exact scores of approximate candidates; `kernels.rescore`."""

    def __init__(self, kernels: Kernels, *, candidates: Candidates = CANDIDATES) -> None:
        self.kernels, self.candidates = kernels, candidates

    def rerank(self, queries: Tensor, prepared: Prepared, found: TopK, temperature: float) -> TopK:
        """Return the candidates by exact score, log_z over the candidates."""
        return self.kernels.rescore(queries, prepared, found.ids, temperature)
