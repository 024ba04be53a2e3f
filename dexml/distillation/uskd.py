"""Self-knowledge distillation (USKD: "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023): no teacher."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from dexml.distillation.base import Distillation, Shortlist, log_partition, log_share, log_softmax


class SelfDistillation(Distillation):
    """α · (1/|P|) Σ_{l∈P} −P_l log S_l  +  β · (−Σ_{i∉P} Z_i log Ŝ_i)  +  μ · CE_weak, with soft labels that the student makes.

    P_l = S_l² + 1 − mean(S²), the mean over positives and batch, is larger for what is learned already. Z is Zipf's law,
    1/rank, over the labels that are no positives, renormalised; the rank is by the odds e^s/Σ_{n∉P} e^{s_n} of the student and
    of its weaker head together. Of the positives the best alone takes a place. CE_weak trains the weaker head on labels
    smoothed by `smoothing`. Without such a head (`Shortlist.weak` is None) the student ranks alone, and there is no third term.
    The published code adds log-probabilities to probabilities where it ranks; its paper does not, nor does this.
    """

    taught = False
    weak = True

    def __init__(
        self,
        *,
        alpha: Annotated[float, Ge(0)] = 1.0,
        beta: Annotated[float, Ge(0)] = 0.1,
        mu: Annotated[float, Ge(0)] = 0.005,
        smoothing: Annotated[float, Ge(0), Le(1)] = 0.1,
    ) -> None:
        self.alpha, self.beta, self.mu, self.smoothing = alpha, beta, mu, smoothing

    def __call__(self, scores: Tensor, known: Shortlist) -> Tensor:
        """Return the loss."""
        batch = max(1, len(scores))
        _, _, weights = known.targets(scores)
        logs = log_share(scores, known)
        squares = logs.detach().exp().square()
        soft = squares + 1 - (weights * squares).sum() / weights.sum().clamp(min=1e-12)
        of_targets = -(weights * soft * logs).sum()
        of_the_rest = -(self.zipf(scores.detach(), known) * log_softmax(scores, known.other)).sum()
        total = self.alpha * of_targets + self.beta * of_the_rest
        return (total if known.weak is None else total + self.mu * self._of_weak(known.weak, known)) / batch

    def zipf(self, scores: Tensor, known: Shortlist) -> Tensor:
        """Return Z (B, M), 0 at positives and padding; each row's sum is 1 where it has a label that is no positive."""
        odds = sum(
            (logits.detach() - log_partition(logits.detach(), known.other)[:, None]).exp()
            for logits in (scores, known.weak)
            if logits is not None
        )
        assert isinstance(odds, Tensor)
        odds = odds.masked_fill(~known.there, -1.0)
        first = odds.masked_fill(~known.positive, -1.0).amax(dim=1, keepdim=True)
        of_rest = odds.masked_fill(~known.other, -1.0)
        places = torch.argsort(torch.argsort(of_rest, dim=1, descending=True, stable=True), dim=1)
        ranks = places + 1 + (first > of_rest)
        law = (1 / ranks.to(scores.dtype)).masked_fill(~known.other, 0.0)
        return law / law.sum(dim=1, keepdim=True).clamp(min=1e-12)

    def _of_weak(self, logits: Tensor, known: Shortlist) -> Tensor:
        rows, among, weights = known.by_target(logits)
        of_targets, places, _ = known.targets(logits)
        logs = log_softmax(logits[rows], among)
        even = self.smoothing * logs.sum(dim=1) / among.sum(dim=1).clamp(min=1)
        there = torch.arange(len(of_targets), device=logits.device)
        own = (1 - self.smoothing) * logs[there, places]
        return -((weights * even)[: len(of_targets)].sum() + (weights[: len(of_targets)] * own).sum())
