"""Distillation by name: what a student's scores of a shortlist are held to, beside the loss over all labels."""

from __future__ import annotations

from dexml.distillation.base import Distillation, Shortlist
from dexml.table import Table

DISTILLATIONS: Table[Distillation] = Table(
    "distillation",
    {
        "nkd": "dexml.distillation.nkd:NormalizedDistillation",
        "topkld": "dexml.distillation.topkld:TopKDivergence",
        "kl_top": "dexml.distillation.kl_top:KLTop",
        "uskd": "dexml.distillation.uskd:SelfDistillation",
    },
)

__all__ = ["DISTILLATIONS", "Distillation", "Shortlist"]
