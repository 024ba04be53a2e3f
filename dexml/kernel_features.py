"""Scalable neural network kernels (Sehanobish et al., ICLR 2024): f(⟨w, x⟩ + b) ≈ ⟨Φ(x), Ψ(w, b)⟩, the two sides made apart.

cos(⟨w, x⟩ + b) = Re E_g[exp(a·g·x − a²‖x‖²/2) · exp(a·g·w − a²‖w‖²/2)·e^{ib}] for g ~ N(0, I) and a = e^{iπ/4}: the paper's
universal random features at ξ = 1/2π, a² = 2πiξ; those at −1/2π are their conjugates and add nothing to a real part. sin(z) is
cos(z − π/2). Complex rows are kept as twice as many real ones, Φ' = [Re Φ, Im Φ] and Ψ' = [Re Ψ, −Im Ψ], so that ⟨Φ', Ψ'⟩ =
Re Σ ΦΨ (without a conjugate) is searched as any inner product is. "relu" is the practical variant Φ = Ψ = m^{−½}·max(0, G·x),
whose product is the arc-cosine kernel of order 1 (Cho and Saul, NIPS 2009).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

Function = Literal["relu", "cos", "sin"]


class KernelFeatures(nn.Module):
    """Φ and Ψ from `count` random directions m in `width` dimensions, the same for the same seed; they are never trained.

    Of cos and sin, the variance grows with e^{‖x + w‖²}: rows should have length one. `damping` M ≥ 0 multiplies both sides by
    (1 + 4M)^{width/4}·e^{−M‖g‖²} and g by √(1 + 4M), as unbiased, and with less variance for a small M.
    """

    directions: Tensor  # g (m, width)

    def __init__(self, width: int, count: int, function: Function, seed: int = 0, damping: float = 0.0) -> None:
        super().__init__()
        self.function, self.damping = function, damping
        self.dimension = count if function == "relu" else 2 * count
        """Of the rows of both sides."""
        self.register_buffer("directions", directions(width, count, seed, alike=function == "relu"))

    def of_inputs(self, inputs: Tensor) -> Tensor:
        """Return Φ(x) (N, dimension) of rows x (N, width)."""
        if self.function == "relu":
            outputs: Tensor = relu(inputs @ self.directions.T) * len(self.directions) ** -0.5
            return outputs
        length, angle = self._polar(inputs)
        return torch.cat([length * angle.cos(), length * angle.sin()], dim=-1)

    def of_weights(self, weights: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        """Return Ψ(w, b) (N, dimension) of rows w (N, width) and b (N, 1) or one for all; "relu" has no bias."""
        if self.function == "relu":
            return self.of_inputs(weights)
        length, angle = self._polar(weights)
        angle = angle + (bias - math.pi / 2 if self.function == "sin" else bias)
        return torch.cat([length * angle.cos(), -length * angle.sin()], dim=-1)

    def exact(self, inputs: Tensor, weights: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        """Return what ⟨Φ(x), Ψ(w, b)⟩ is on average (N, L), of rows x (N, width), w (L, width) and b (1, L) or one b."""
        products = inputs @ weights.T
        if self.function != "relu":
            return torch.cos(products + bias) if self.function == "cos" else torch.sin(products + bias)
        lengths = inputs.norm(dim=1, keepdim=True) * weights.norm(dim=1)
        angle = torch.arccos((products / lengths.clamp(min=1e-30)).clamp(-1, 1))
        kernel: Tensor = lengths * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
        return kernel

    def _polar(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return modulus and angle (N, m) of m^{−½}·exp(a·g·x − a²‖x‖²/2), damped: a = (1 + i)/√2 and a² = i."""
        count, width = self.directions.shape
        stretch = 1 + 4 * self.damping
        along = rows @ self.directions.T * (stretch / 2) ** 0.5
        constant = math.log(stretch) * width / 4 - math.log(count) / 2
        length = torch.exp(along - self.damping * self.directions.square().sum(dim=1) + constant)
        return length, along - rows.square().sum(dim=-1, keepdim=True) / 2


def directions(width: int, count: int, seed: int, alike: bool) -> Tensor:
    """Return random directions float32 (count, width), each with its opposite, at right angles within blocks of `width`.

    Each alone is uniform, and as long as a normally distributed vector; or √width, where `alike`, which leaves the mean of a
    homogeneous function as it is. They miss less than independent ones would: the error of "relu" falls to a third.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks, half = [], -(-count // 2)
    for _ in range(-(-half // width)):
        # The signs of R make the basis uniform (Mezzadri, 2007).
        basis, upper = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
        lengths = torch.randn(width, width, generator=generator, dtype=torch.float64).norm(dim=1, keepdim=True)
        blocks.append(basis * upper.diagonal().sign() * (width**0.5 if alike else lengths))
    drawn = torch.cat(blocks)[:half].float()
    return torch.stack([drawn, -drawn], dim=1).reshape(-1, width)[:count]
