"""Answers over disjoint parts of the labels, made one: top-k and log-partition both merge exactly.

The best k of all are among the best k of each part, and log Z = log Σ_s e^{log Z_s}; both are associative, and a part without
labels (−1, −∞; log Z = −∞) changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dexml.types import TopK


def merged(parts: Sequence[TopK]) -> TopK:
    """Return the best K of answers (B, K) over disjoint labels, by score descending, then id ascending, missing ones last.

    `log_z` keeps the widest of the parts' number types, and is None where one of them is.
    """
    ids, scores = torch.cat([part.ids for part in parts], dim=1), torch.cat([part.scores for part in parts], dim=1)
    width = max(part.ids.shape[1] for part in parts)
    # Missing ones have −1 and −∞: no label scores −∞, so none comes before a label.
    order = torch.from_numpy(np.lexsort((ids.numpy(), -scores.numpy()), axis=1)[:, :width].copy())
    return TopK(ids.gather(1, order), scores.gather(1, order), log_sum([part.log_z for part in parts]))


def log_sum(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Return log Σ_s e^{log Z_s} (B) of the log-partitions of disjoint labels; None where one is not known."""
    known = [part for part in parts if part is not None]
    return torch.logsumexp(torch.stack(known), dim=0) if len(known) == len(parts) else None


__all__ = ["log_sum", "merged"]
