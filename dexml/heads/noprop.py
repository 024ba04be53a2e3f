"""NoProp (Li, Teh and Pascanu, arXiv 2503.24322): blocks that denoise a label embedding, each trained alone.

Noise is mixed in by z_t ~ N(√ᾱ_t·u, (1 − ᾱ_t)·I), t = 0 … T, ᾱ_0 = 0 < … < ᾱ_T < 1: z_0 is pure noise, z_T nearly the embedding
u. Block t sees z_{t−1} and the features x, and guesses u: û_t = f_t(z_{t−1}, x). It is trained on a z_{t−1} drawn around the u
of a training row, with ‖û_t − u‖² as its only loss, so that no gradient passes from a block to another, and all train at once.
Asked, the blocks go one after the other from a z_0 that knows nothing of u: z_t = a_t·û_t + b_t·z_{t−1} + √c_t·ε.

The paper weighs the losses by SNR_t − SNR_{t−1}, SNR = ᾱ/(1 − ᾱ). Blocks that share nothing have an optimum of their own each,
whatever its weight, and Adam divides a constant factor out: there are no weights here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from dexml.types import Positives


@dataclass(frozen=True, eq=False)
class Schedule:
    """ᾱ float64 (T + 1), and how z_t is mixed, a, b, c float64 (T) each: a_t stands at place t − 1."""

    kept: Tensor
    a: Tensor
    b: Tensor
    c: Tensor

    @staticmethod
    def of(kept: Tensor) -> Schedule:
        """Return the mixing that keeps z_t ~ N(√ᾱ_t·u, (1 − ᾱ_t)·I) where z_{t−1} is such and û_t = u, for ᾱ (T + 1)."""
        before, now = kept[:-1].double(), kept[1:].double()
        ratio = before / now  # α_{t−1}
        noise = 1 - before
        return Schedule(
            kept.double(), now.sqrt() * (1 - ratio) / noise, ratio.sqrt() * (1 - now) / noise, (1 - now) * (1 - ratio) / noise
        )

    @staticmethod
    def cosine(blocks: int) -> Schedule:
        """Return ᾱ_t = sin²(πt/(2T + 2)): from exactly 0, to nearly 1."""
        return Schedule.of(torch.sin(torch.arange(blocks + 1, dtype=torch.float64) * (torch.pi / (2 * blocks + 2))).square())


class Blocks(nn.Module):
    """û_t = s·(x + W₂·relu(W₁·[z, x])) of T blocks, side by side; without the first x where it is not as wide as z.

    The numbers of features x (N, M) have a deviation of about 1, like the noise's; those of embeddings u (N, D) of s, the
    `signal`. The smaller it is, the less z tells of u but in the last blocks, and the more a block looks at x.
    """

    def __init__(self, blocks: int, features: int, dimension: int, hidden: int, signal: float = 0.3) -> None:
        super().__init__()
        self.schedule = Schedule.cosine(blocks)
        self.signal = signal
        self.residual = features == dimension
        self.enter = nn.Parameter(torch.zeros(blocks, dimension + features, hidden))
        self.enter_bias = nn.Parameter(torch.zeros(blocks, 1, hidden))
        self.leave = nn.Parameter(torch.zeros(blocks, hidden, dimension))
        self.leave_bias = nn.Parameter(torch.zeros(blocks, 1, dimension))

    @torch.no_grad()
    def start(self) -> None:
        """Set W₁ at random and W₂ near 0: the first guess is about x itself, or 0."""
        self.enter.normal_(std=(2 / self.enter.shape[1]) ** 0.5)
        self.leave.normal_(std=0.02 * self.leave.shape[1] ** -0.5)
        for parameter in (self.enter_bias, self.leave_bias):
            parameter.zero_()

    def __len__(self) -> int:
        return len(self.enter)

    def guesses(self, noisy: Tensor, rows: Tensor, blocks: slice = slice(None)) -> Tensor:
        """Return û (T, N, D) of some blocks for z (T, N, D), one for each block, and x (N, M)."""
        inputs = torch.cat([noisy, rows.expand(len(noisy), *rows.shape)], dim=2)
        hidden = relu(torch.baddbmm(self.enter_bias[blocks], inputs, self.enter[blocks]))
        found = torch.baddbmm(self.leave_bias[blocks], hidden, self.leave[blocks])
        return self.signal * (found + rows if self.residual else found)

    def noised(self, targets: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return z_{t−1} (T, N, D) for every block t, drawn around u (N, D)."""
        kept = self.schedule.kept[:-1].to(targets)[:, None, None]
        noise = torch.randn(len(self), *targets.shape, generator=generator, dtype=targets.dtype, device=targets.device)
        return kept.sqrt() * targets + (1 - kept).sqrt() * noise

    def losses(self, rows: Tensor, targets: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return mean (û_t − u)²/s² (T) of every block for x (N, M) and u (N, D), on noise of its own.

        The gradient of a block's loss is 0 in all other blocks.
        """
        guesses = self.guesses(self.noised(targets, generator), rows)
        return ((guesses - targets) / self.signal).square().mean(dim=(1, 2))

    def denoise(
        self, rows: Tensor, start: Tensor, generator: torch.Generator | None = None, blocks: int | None = None
    ) -> Tensor:
        """Return z_T (N, D) from z_0 = `start` (D) or (N, D), for x (N, M); or z after the first `blocks`.

        Without a `generator` no noise is added on the way: z goes along its mean.
        """
        z = start.expand(rows.shape[0], self.leave.shape[2])  # `len` would fix the number of texts of an exported graph
        mixing = zip(*(values.tolist() for values in (self.schedule.a, self.schedule.b, self.schedule.c)), strict=True)
        for number, (a, b, c) in enumerate(mixing):
            if number == blocks:
                break
            z = a * self.guesses(z[None], rows, slice(number, number + 1))[0] + b * z
            if generator is not None:
                z = z + c**0.5 * torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        return z


def centroids(labels: Tensor, positives: Positives) -> Tensor:
    """Return unit rows (N, D) along the sum of each row's positives among the embeddings (L, D); 0 of a row that has none."""
    places = torch.from_numpy(np.repeat(np.arange(len(positives)), np.diff(positives.indptr)))
    own = labels[torch.from_numpy(positives.indices)]
    return normalize(labels.new_zeros(len(positives), labels.shape[1]).index_add(0, places, own), dim=1)
