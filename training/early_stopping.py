"""The best validation of a run and the weights it had, so that a run which stops early ends on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

BEST = "best."  # before the names of a checkpoint's tensors


@dataclass
class Best:
    """The best validation so far, with the weights it had."""

    value: float = -1.0
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def see(self, value: float, epoch: int, trained: Mapping[str, Tensor]) -> None:
        """Keep what is better than before."""
        if value > self.value:
            self.value, self.epoch = value, epoch
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in trained.items()}

    def restore(self, trained: Mapping[str, Tensor]) -> None:
        """Put the best weights back."""
        with torch.no_grad():
            for name, tensor in trained.items():
                tensor.copy_(self.weights[name])

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {BEST + name: tensor for name, tensor in self.weights.items()}

    @staticmethod
    def weights_in(extra: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights that a checkpoint kept."""
        return {name.removeprefix(BEST): tensor for name, tensor in extra.items() if name.startswith(BEST)}
