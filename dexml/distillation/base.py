"""What a distillation is: a student's logits of shortlists in, beside what is known of these labels, one scalar out.

The papers have one target a query; here it is a set P. Each positive l is a target of its own, against the labels that are not
in P: S_l = e^{s_l} / (e^{s_l} + Σ_{n∉P} e^{s_n}), the share of the decoupled softmax. With one positive this is the papers'.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus


@dataclass(frozen=True, eq=False)
class Shortlist:
    """What is known of M labels for each of B queries: which are positives, and which are `there`, the rest being padding.

    `positive` and `there` are bool (B, M). `teacher` (B, M) are the teacher's logits, scores over its temperature, and `weak`
    those of a weaker head of the student, where there are any; what stands at padding is not read.
    """

    positive: Tensor
    there: Tensor
    teacher: Tensor | None = None
    weak: Tensor | None = None

    @property
    def other(self) -> Tensor:
        """The labels that are no positives, bool (B, M)."""
        return self.there & ~self.positive

    def taught(self) -> Tensor:
        """Return the teacher's logits (B, M). Raises ValueError where nobody teaches."""
        if self.teacher is None:
            raise ValueError("this distillation reads a teacher's scores")
        return self.teacher

    def targets(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows and places of the positives, int64 (nnz), and weights 1/|P| (nnz), typed `like`."""
        positive = self.positive & self.there
        rows, places = positive.nonzero(as_tuple=True)
        return rows, places, 1 / positive.sum(dim=1).to(like.dtype)[rows]

    def by_target(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a row for each positive l, and one for each query that has none: `rows` (n), `among` (n, M), weights (n).

        `among` are l and the labels that are no positives; the weights of a query's rows have the sum 1.
        """
        rows, places, weights = self.targets(like)
        bare = (~(self.positive & self.there).any(dim=1)).nonzero()[:, 0]
        among = self.other[torch.cat([rows, bare])]
        among[torch.arange(len(rows), device=rows.device), places] = True
        return torch.cat([rows, bare]), among, torch.cat([weights, torch.ones_like(bare, dtype=weights.dtype)])


class Distillation(ABC):
    """A loss on shortlists, the mean over queries; options are keyword-only, inputs are never edited.

    The hard labels' own loss is not part of it: `dexml distill` adds the one of [loss], over all labels.
    """

    taught: ClassVar[bool] = True
    """Whether it reads a teacher's scores."""
    weak: ClassVar[bool] = False
    """Whether it reads a weaker head's."""

    @abstractmethod
    def __call__(self, scores: Tensor, known: Shortlist) -> Tensor:
        """Return the scalar loss of the student's logits `scores` (B, M), differentiable in them (and in `known.weak`)."""


def log_softmax(logits: Tensor, among: Tensor) -> Tensor:
    """Return the log-softmax of each row over the places `among` bool (n, M), and 0 at the others."""
    some = among.any(dim=1, keepdim=True)
    inside = logits.masked_fill(~among & some, -torch.inf).masked_fill(~some, 0.0)  # of no place there is nothing to keep
    return torch.log_softmax(inside, dim=1).masked_fill(~among, 0.0)


def softmax(logits: Tensor, among: Tensor) -> Tensor:
    """Return the softmax of each row over the places `among` bool (n, M), and 0 at the others."""
    return log_softmax(logits, among).exp().masked_fill(~among, 0.0)


def log_partition(logits: Tensor, among: Tensor) -> Tensor:
    """Return log Σ e^{logit} of each row over the places `among`; −∞ where there is none."""
    some = among.any(dim=1)
    inside = logits.masked_fill(~among & some[:, None], -torch.inf).masked_fill(~some[:, None], 0.0)
    return torch.where(some, torch.logsumexp(inside, dim=1), -torch.inf)


def log_share(logits: Tensor, known: Shortlist) -> Tensor:
    """Return log S_l of every positive (nnz), in the order of `Shortlist.targets`."""
    rows, places, _ = known.targets(logits)
    return -softplus(log_partition(logits, known.other)[rows] - logits[rows, places])


def divergence(p: Tensor, log_p: Tensor, log_q: Tensor, q: Tensor) -> Tensor:
    """Return the terms p·log(p/q) + q − p, none of them negative, that add up to the Kullback-Leibler divergence."""
    return p * (log_p - log_q) + q - p
