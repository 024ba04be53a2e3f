"""The operations every kernel backend offers, with their shapes; `reference` is the definition of correct.

B queries, L labels, D dimension, K candidates, τ temperature. All tensors in and out are torch tensors on one device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dexml.types import Positives, Problem, TopK


@dataclass(frozen=True, eq=False)
class Prepared:
    """Label rows ready to be scanned: `labels` float32 (L, D) contiguous, and whatever `copy` the backend scans first."""

    labels: Tensor
    copy: str = "none"
    private: dict[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)


class Kernels(ABC):
    """Fused operations over all labels. Every backend gives the same values and gradients within rounding."""

    @classmethod
    @abstractmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """Return why this backend cannot serve `problem`, or None when it can."""

    @abstractmethod
    def prepare(self, labels: Tensor, copy: str = "auto") -> Prepared:
        """Return `labels` (L, D) as float32 rows with a scanning copy: "auto", "none", "int16" or "int8"."""

    @abstractmethod
    def scan(self, queries: Tensor, prepared: Prepared, k: int, temperature: float) -> TopK:
        """Return the exact top-k of (queries @ labels.T) and log Σ_j e^{s_j/τ} over all labels, in one pass.

        `queries` (B, D). k > L pads with −1 and −inf. Raises ValueError for a query that is not finite.
        """

    @abstractmethod
    def rescore(self, queries: Tensor, prepared: Prepared, ids: Tensor, temperature: float) -> TopK:
        """Return candidates `ids` int64 (B, K; −1 = none) sorted by their exact score, with log_z over them."""

    @abstractmethod
    def softmax(self, scores: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the softmax of scores/τ over the last axis, float32: torch.softmax without overflow at any finite input.

        A row of −inf alone gives zeros.
        """

    @abstractmethod
    def negative_lse(self, queries: Tensor, labels: Tensor, positives: Positives, temperature: float) -> Tensor:
        """Return log Σ_{n ∉ P_i} e^{s_in/τ} (B), differentiable in queries (B, D) and labels (L, D)."""

    @abstractmethod
    def topk_threshold(self, queries: Tensor, labels: Tensor, k: int, alpha: float, temperature: float) -> Tensor:
        """Return t (B) with Σ_j σ(α(s_ij/τ + t_i)) = k, differentiable in queries (B, D) and labels (L, D)."""
