"""The step of frozen features over several ranks: each has a share of the labels, their free vectors and their moments.

Every rank puts the whole batch of queries through the tower, with the same random state and so the same dropout: this is
cheap beside the labels, and makes the step the one that a single process takes. What a rank then holds is the gradient of the
shared parameters by its own labels; one sum over the ranks makes it whole, and all of them take the same step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dexml.errors import InputError
from dexml.losses import Loss
from dexml.losses.sharded import ShardedLoss
from dexml.model import DualEncoder
from dexml.types import Int64Array, Positives
from training import stability
from training.config import Config
from training.early_stopping import BEST
from training.steps import FrozenFeatures
from training.world import World

FREE = "free"  # the one parameter of a tower that has a row for each label


class ShardedFeatures(FrozenFeatures):
    """`FrozenFeatures` of this rank's share of the labels."""

    def __init__(
        self,
        config: Config,
        model: DualEncoder,
        loss: Loss,
        texts: Sequence[str],
        labels: Sequence[str],
        positives: Positives,
        world: World,
    ) -> None:
        """`labels` (L) are all trained ones. Raises InputError where there are fewer than ranks."""
        share = world.share(len(labels))
        if len(labels) < world.size:
            raise InputError(f"{len(labels)} trained labels are too few for {world.size} ranks")
        # The parameters' gradients are summed over the ranks below, and the queries' with them.
        sharded = ShardedLoss(loss, share.start, world, whole_gradient=False)
        super().__init__(config, model, sharded, texts, labels[share], positives)
        self.world = world
        self.count = self.scored = len(labels)
        self.shared = [parameter for name, parameter in self.trained.items() if name != FREE]

    def backward(self, rows: Int64Array) -> float:
        """Return the loss over all ranks' labels; the shared parameters' gradient is whole on every rank."""
        value = super().backward(rows)
        for parameter in self.shared:
            if parameter.grad is None:  # as where nothing of a batch asks for it; the others may have one
                parameter.grad = torch.zeros_like(parameter)
            self.world.sum(parameter.grad)
        return value

    def gradient_norm(self) -> float:
        """Return the length of the gradient of all ranks' parameters."""
        own = [self.trained[FREE].grad] if FREE in self.trained else []
        squares = self.world.sum(nn.utils.get_total_norm([g for g in own if g is not None]).double().square())
        shared = nn.utils.get_total_norm([p.grad for p in self.shared if p.grad is not None]).double().square()
        return float((squares + shared).sqrt())

    def collapsed(self) -> dict[str, float] | None:
        """Return the share over all ranks' positives."""
        return None if self.loss.pulls is None else stability.shares(self.world.sum(stability.counted(self.loss.pulls)))

    def total(self, parameter: Tensor, sums: Tensor) -> Tensor:
        """Return sums over all ranks' free vectors; of what every rank has whole, this rank's are all."""
        return self.world.sum(sums) if parameter is self.trained.get(FREE) else sums

    def gathered(self, rows: Tensor) -> Tensor:
        """Return the rows of all labels on rank 0; none on the others."""
        return self.world.gather(rows, self.count)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters or moments with those of all ranks' free vectors, on rank 0."""
        return {name: self.gathered(value) if _by_label(name, value) else value for name, value in tensors.items()}

    def part(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's part of what `whole` made, on any number of ranks."""
        share = self.world.share(self.count)
        return {name: value[share] if _by_label(name, value) else value for name, value in tensors.items()}

    def describe(self) -> str:
        """Return the number of features and of ranks."""
        return f"{super().describe()}, labels spread over {self.world.size} ranks"


def _by_label(name: str, value: Tensor) -> bool:
    """Return whether a tensor, of a parameter or "parameter/moment", has a row for each label; AdamW's step is a number."""
    return name.partition("/")[0].removeprefix(BEST) == FREE and value.ndim > 0
