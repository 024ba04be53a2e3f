"""Normalized knowledge distillation (NKD: "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023)."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from dexml.distillation.base import Distillation, Shortlist, log_share, log_softmax, softmax


class NormalizedDistillation(Distillation):
    """(1/|P|) Σ_{l∈P} −T_l log S_l  +  γλ² · (−Σ_{i∉P} T̂_i log Ŝ_i).

    T̂ and Ŝ are the softmaxes at temperature λ over the labels that are no positives, so that they can agree whatever the
    positives get: the second term's gradient is 0 where the student ranks the rest as the teacher does.
    """

    def __init__(self, *, gamma: Annotated[float, Ge(0)] = 1.5, temperature: Annotated[float, Gt(0)] = 1.0) -> None:
        self.gamma, self.temperature = gamma, temperature

    def __call__(self, scores: Tensor, known: Shortlist) -> Tensor:
        """Return the loss."""
        batch = max(1, len(scores))
        _, _, weights = known.targets(scores)
        of_targets = -(weights * log_share(known.taught(), known).exp() * log_share(scores, known)).sum()
        return (of_targets + self.gamma * self.temperature**2 * self.of_the_rest(scores, known).sum()) / batch

    def of_the_rest(self, scores: Tensor, known: Shortlist) -> Tensor:
        """Return −Σ_{i∉P} T̂_i log Ŝ_i (B)."""
        teacher = softmax(known.taught() / self.temperature, known.other)
        return -(teacher * log_softmax(scores / self.temperature, known.other)).sum(dim=1)
