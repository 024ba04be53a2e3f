"""How many of a batch's positives the softmax has left without a gradient: softmax collapse (Prieto et al., 2025), watched.

A positive is pulled by 1 − p, p its probability. A sum of exponentials in a number type of b significant bits, its first one
counted, is that of the positive alone once all others together are less than 2^−b of it: p is then 1, and the pull 0, exactly.
That is a lead of b·ln 2 over the log of the others' sum, 16.6 in float32, 7.6 in float16 and 5.5 in bfloat16, and so of
b·ln 2 + ln n over n negatives of one score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from training.config import Config
    from training.run import Progress

BITS: Mapping[str, int] = {"float32": 24, "float16": 11, "bfloat16": 8}
IN_USE = "float32"  # what every kernel backend sums exponentials in, whatever the operands of its products
LIMIT = 0.1  # of a batch's positives


def counted(pulls: Tensor) -> Tensor:
    """Return how many of the `pulls` (nnz) are lost in each of BITS, and of how many, float64 (4) on the CPU; NaN is none."""
    limits = torch.tensor([2.0**-bits for bits in BITS.values()], dtype=pulls.dtype, device=pulls.device)
    lost = (pulls[:, None] < limits).sum(0)
    return torch.cat([lost, (~pulls.isnan()).sum()[None]]).double().cpu()


def shares(counts: Tensor) -> dict[str, float] | None:
    """Return the share that is lost in each of BITS, by what `counted` returned; None without a positive."""
    *lost, positives = counts.tolist()
    return {name: number / positives for name, number in zip(BITS, lost, strict=True)} if positives else None


class Watch:
    """Warns, once, when the positives of a step without a gradient are more than LIMIT in the number type in use."""

    def __init__(self, config: Config, warn: Callable[[str], None]) -> None:
        self.config = config
        self._warn: Callable[[str], None] | None = warn

    def __call__(self, now: Progress) -> None:
        """Look at a step."""
        if self._warn is None or now.collapsed is None or now.collapsed[IN_USE] <= LIMIT:
            return
        percent = {number: f"{100 * share:.0f}%" for number, share in now.collapsed.items()}
        narrower = " and ".join(f"{percent[number]} in {number}" for number in BITS if number != IN_USE)
        self._warn(
            f"softmax collapse at step {now.step}: {percent[IN_USE]} of the batch's positives have probability 1 in {IN_USE} "
            f"(it would be {narrower}), and their gradient is 0 or lost beside the others'. {self._advice()}"
        )
        self._warn = None

    def _advice(self) -> str:
        temperature = self.config.loss.options.get("temperature")
        advice = "Raise loss.temperature" + ("" if temperature is None else f", now {temperature:g},")
        advice += " or score more negatives"
        if self.config.optimizer.name != "orthograd":
            advice += "; where rows have no fixed length, set optimizer.name to 'orthograd'"
        return advice
