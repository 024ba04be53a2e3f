"""Gaussian mixtures of experts over one number, gated by top-K softmax: densities, the Voronoi loss, and their fit by EM.

Nguyen et al. (arXiv 2309.13850): g(y|x) = Σ_i softmax_i(TopK(β_i·x + c_i))·N(y | a_i·x + b_i, σ_i²), x uniform on [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from dexml.towers.mixture import top_gates

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """Experts' gates β and c, lines a and b, and deviations σ, each (k); `chosen` of them for each x."""

    beta: Array
    c: Array
    a: Array
    b: Array
    sigma: Array
    chosen: int

    @staticmethod
    def of(*experts: tuple[float, float, float, float, float], chosen: int) -> Mixture:
        """Return a mixture of experts (β, c, a, b, σ)."""
        beta, c, a, b, sigma = np.array(experts, dtype=float).T
        return Mixture(beta, c, a, b, sigma, chosen)

    def split(self, number: int, chosen: int) -> Mixture:
        """Return the same with an expert twice, each of half its weight: what a fit of one expert too many tends to."""
        order = [*range(len(self.beta)), number]
        c = self.c[order]
        c[[number, -1]] -= np.log(2)
        return Mixture(self.beta[order], c, self.a[order], self.b[order], self.sigma[order], chosen)

    def gates(self, x: Array) -> Array:
        """Return p (n, k)."""
        gates: Array = top_gates(torch.from_numpy(np.outer(x, self.beta) + self.c), self.chosen).numpy()
        return gates

    def of_experts(self, x: Array, y: Array) -> Array:
        """Return N(y | a_i·x + b_i, σ_i²) (n, k) of pairs (x, y)."""
        apart = (y[:, None] - np.outer(x, self.a) - self.b) / self.sigma
        densities: Array = np.exp(-0.5 * apart**2) / (self.sigma * np.sqrt(2 * np.pi))
        return densities

    def draw(self, count: int, random: np.random.Generator) -> tuple[Array, Array]:
        """Return `count` pairs (x, y)."""
        x = random.uniform(size=count)
        numbers = (self.gates(x).cumsum(1) < random.uniform(size=(count, 1))).sum(1).clip(max=len(self.beta) - 1)
        return x, self.a[numbers] * x + self.b[numbers] + self.sigma[numbers] * random.standard_normal(count)


def variation(one: Mixture, other: Mixture, points: int = 201) -> Array:
    """Return the total variation ½∫|g − h| dy of two mixtures at x on a grid (points)."""
    x, y = np.linspace(0, 1, points), np.linspace(-32, 32, 3201)

    def density(mixture: Mixture) -> Array:
        gates, found = mixture.gates(x), np.zeros((points, len(y)))
        for number in range(points):
            found[number] = mixture.of_experts(np.full(len(y), x[number]), y) @ gates[number]
        return found

    apart: Array = 0.5 * np.abs(density(one) - density(other)).sum(1) * (y[1] - y[0])
    return apart


def cells(fit: Mixture, truth: Mixture) -> npt.NDArray[np.int64]:
    """Return for each fitted expert the true one nearest to it, by line and deviation (k)."""
    own, true = (np.stack([m.a, m.b, m.sigma], axis=1) for m in (fit, truth))
    nearest: npt.NDArray[np.int64] = np.linalg.norm(own[:, None] - true[None], axis=2).argmin(1)
    return nearest


def lines_error(fit: Mixture, truth: Mixture) -> Array:
    """Return Σ |Δ(a, b, σ)| over the cell of each true expert (k*): the experts' part of the Voronoi loss D₁, weights aside."""
    nearest = cells(fit, truth)
    apart = np.abs(fit.a - truth.a[nearest]) + np.abs(fit.b - truth.b[nearest]) + np.abs(fit.sigma - truth.sigma[nearest])
    return np.bincount(nearest, weights=apart, minlength=len(truth.beta)).astype(np.float64)


def fit(x: Array, y: Array, start: Mixture, sweeps: int, gate_steps: int = 0, gate_rate: float = 0.0) -> Mixture:
    """Return the mixture after `sweeps` of EM: lines and deviations in closed form, gates by gradient ascent, or fixed."""
    now, design = start, np.stack([x, np.ones_like(x)], axis=1)
    for _ in range(sweeps):
        shares = now.gates(x) * now.of_experts(x, y)
        shares /= shares.sum(1, keepdims=True).clip(min=1e-300)
        lines = np.zeros((3, shares.shape[1]))
        for number, share in enumerate(shares.T):
            weighted = design * share[:, None]
            a, b = np.linalg.solve(weighted.T @ design + 1e-9 * np.eye(2), weighted.T @ y)
            spread = np.sqrt(share @ (y - a * x - b) ** 2 / share.sum().clip(min=1e-9))
            lines[:, number] = a, b, max(spread, 1e-3)
        now = replace(now, a=lines[0], b=lines[1], sigma=lines[2])
        for _ in range(gate_steps):
            pulls = (shares - now.gates(x)) * (now.gates(x) > 0)
            now = replace(now, beta=now.beta + gate_rate * (pulls.T @ x) / len(x), c=now.c + gate_rate * pulls.mean(0))
    return now
