"""AdamW, torch's fused one: the default."""

from __future__ import annotations

from typing import Any

import torch

from training.optimizers.base import Optimization, Total


class AdamW(Optimization):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    def make(self, groups: list[dict[str, Any]], total: Total) -> torch.optim.Optimizer:
        """Return AdamW over the groups; it looks at one element at a time, and needs no totals."""
        # The binary cross-entropy is a mean over B·L pairs: its gradients are near Adam's usual ε of 1e-8, which would stop
        # them.
        return torch.optim.AdamW(groups, fused=True, eps=1e-12)
