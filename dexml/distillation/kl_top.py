"""KL-Top: the Kullback-Leibler divergence over the teacher's best labels alone (OSTQuant, arXiv 2501.13987)."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from dexml.distillation.base import Distillation, Shortlist, log_softmax


class KLTop(Distillation):
    """λ² · Σ_{i∈K} p log(p/r): K the teacher's `top` best, both softmaxes at temperature λ renormalised over K.

    K is taken from a positive and all labels that are none, the mean over positives. What is not in K is left alone.
    """

    def __init__(self, *, top: Annotated[int, Ge(1)] = 100, temperature: Annotated[float, Gt(0)] = 1.0) -> None:
        self.top, self.temperature = top, temperature

    def __call__(self, scores: Tensor, known: Shortlist) -> Tensor:
        """Return the loss."""
        rows, among, weights = known.by_target(scores)
        teacher = known.taught()[rows] / self.temperature
        best = teacher.masked_fill(~among, float("-inf")).topk(min(self.top, teacher.shape[1]), dim=1).indices
        chosen = among.gather(1, best)
        log_p = log_softmax(teacher.gather(1, best), chosen)
        log_r = log_softmax(scores[rows].gather(1, best) / self.temperature, chosen)
        of_rows = (log_p.exp().masked_fill(~chosen, 0.0) * (log_p - log_r)).sum(dim=1)
        return self.temperature**2 * (weights * of_rows).sum() / max(1, len(scores))
