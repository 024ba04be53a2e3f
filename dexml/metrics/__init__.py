"""P, R, nDCG, hits, MRR, MAP, PSP, PSnDCG, PSR @k, coverage and macro-averages, in percent, without torch.

One figure of ranked label numbers or of a sparse matrix of scores: `precision_at` and its like (`dexml.metrics.single`). All of
them, of a split of any size: `measure` or a `Tally`, and by label frequency `deciles` and `bands`. By row, to compare runs:
`of_rows`. Of probabilities: `ece_at` and its like (`dexml.metrics.calibration`).
"""

from __future__ import annotations

from dexml.metrics.calibration import Reliability, adaptive_ece_at, brier_at, ece_at, log_loss_at, reliability
from dexml.metrics.found import hits, without
from dexml.metrics.groups import Group, bands, deciles
from dexml.metrics.propensity import CONSTANTS, DEFAULT_PROPENSITY, Float64Array, propensity_constants, propensity_weights
from dexml.metrics.rows import CUTOFFS, Rows, of_rows
from dexml.metrics.single import (
    average_precision_at,
    coverage_at,
    hit_rate_at,
    macro_f1_at,
    macro_precision_at,
    macro_recall_at,
    ndcg_at,
    precision_at,
    propensity_ndcg_at,
    propensity_precision_at,
    propensity_recall_at,
    recall_at,
    reciprocal_rank_at,
    table,
)
from dexml.metrics.tally import Tally, measure
from dexml.metrics.top import predictions, top

__all__ = [
    "CONSTANTS",
    "CUTOFFS",
    "DEFAULT_PROPENSITY",
    "Float64Array",
    "Group",
    "Reliability",
    "Rows",
    "Tally",
    "adaptive_ece_at",
    "average_precision_at",
    "bands",
    "brier_at",
    "coverage_at",
    "deciles",
    "ece_at",
    "hit_rate_at",
    "hits",
    "log_loss_at",
    "macro_f1_at",
    "macro_precision_at",
    "macro_recall_at",
    "measure",
    "ndcg_at",
    "of_rows",
    "precision_at",
    "predictions",
    "propensity_constants",
    "propensity_ndcg_at",
    "propensity_precision_at",
    "propensity_recall_at",
    "propensity_weights",
    "recall_at",
    "reciprocal_rank_at",
    "reliability",
    "table",
    "top",
    "without",
]
