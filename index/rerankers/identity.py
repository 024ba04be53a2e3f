"""The index's own scores and order, with the softmax over the candidates: what FAISS alone would answer."""

from __future__ import annotations

import torch
from torch import Tensor

from dexml.kernels import Kernels, Prepared
from dexml.types import TopK
from index.rerankers.base import CANDIDATES, Candidates, Reranker


class IdentityReranker(Reranker):
    """Leaves the candidates as they are."""

    def __init__(self, kernels: Kernels, *, candidates: Candidates = CANDIDATES) -> None:
        self.kernels, self.candidates = kernels, candidates

    def rerank(self, queries: Tensor, prepared: Prepared, found: TopK, temperature: float) -> TopK:
        """Return the candidates unchanged, log_z over them."""
        return TopK(found.ids, found.scores, torch.logsumexp(found.scores / temperature, dim=1))
