"""How trained parameters are moved: a torch optimizer, made of their groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Total = Callable[[Tensor, Tensor], Tensor]
"""(parameter, sums) -> the sums over all of that parameter, given those over the part of it that this process holds."""


class Optimization(ABC):
    """A row of OPTIMIZERS. Options are keyword-only."""

    @abstractmethod
    def make(self, groups: list[dict[str, Any]], total: Total) -> torch.optim.Optimizer:
        """Return an optimizer of parameter `groups`, whose state is tensors by parameter.

        A gradient that needs a figure of a whole parameter gets it by `total`, which all processes call in the same order.
        """
