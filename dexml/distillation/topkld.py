"""Top-K divergence: forward Kullback-Leibler on the teacher's best labels, reverse on the rest.

After "Bit-level scaling laws" (arXiv 2501.06218), whose abstract gives the idea: balance what the teacher is sure of with its
tail. The formula is our reconstruction.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, zeros_like

from dexml.distillation.base import Distillation, Shortlist, divergence, log_softmax


class TopKDivergence(Distillation):
    """λ² · [Σ_{i∈K} p log(p/r) + r − p  +  ρ · Σ_{i∉K} r log(r/p) + p − r], K the teacher's `top` best, ρ `rest`.

    p and r are the teacher's and the student's softmax at temperature λ over a positive and all labels that are none, the mean
    over positives. With K all labels it is the forward divergence, classical distillation; with none the reverse. `swap`
    takes the reverse on K and the forward on the rest.
    """

    def __init__(
        self,
        *,
        top: Annotated[int, Ge(0)] = 10,
        rest: Annotated[float, Ge(0)] = 1.0,
        temperature: Annotated[float, Gt(0)] = 1.0,
        swap: bool = False,
    ) -> None:
        self.top, self.rest, self.temperature, self.swap = top, rest, temperature, swap

    def __call__(self, scores: Tensor, known: Shortlist) -> Tensor:
        """Return the loss."""
        rows, among, weights = known.by_target(scores)
        teacher = known.taught()[rows] / self.temperature
        log_p, log_r = log_softmax(teacher, among), log_softmax(scores[rows] / self.temperature, among)
        p, r = (logs.exp().masked_fill(~among, 0.0) for logs in (log_p, log_r))
        forward, reverse = divergence(p, log_p, log_r, r), divergence(r, log_r, log_p, p)
        best = zeros_like(among).scatter_(1, p.topk(min(self.top, p.shape[1]), dim=1).indices, True)
        inside, outside = (reverse, forward) if self.swap else (forward, reverse)
        of_rows = inside.where(best, self.rest * outside).sum(dim=1)
        return self.temperature**2 * (weights * of_rows).sum() / max(1, len(scores))
