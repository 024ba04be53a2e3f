"""The neural tangent kernel: of a network as it is, from its gradients; and of an infinitely wide one, from inner products.

Θ(x, x') = ⟨∂f(x)/∂θ, ∂f(x')/∂θ⟩ says how a step on x moves the output at x'. Near its start a wide network trains as the linear
model of this kernel: the residual along an eigenvector u_k falls as e^{−ηλ_k t} (Jacot, Gabriel & Hongler, NeurIPS 2018; Lee et
al., NeurIPS 2019). N rows; a constant kernel is no more than a picture of a network that moves far from where it started.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from dexml.analysis.dags import Float64Array

Activation = Literal["relu", "erf"]


@dataclass(frozen=True, eq=False)
class Inner:
    """Inner products ⟨x, z⟩ (N, M) of two sets of inputs, and squared lengths (N) and (M): all that a wide network reads."""

    products: Float64Array
    left: Float64Array
    right: Float64Array

    @staticmethod
    def of(left: Float64Array, right: Float64Array | None = None) -> Inner:
        """Return those of dense rows (N, D) and (M, D), or of rows with themselves."""
        right = left if right is None else right
        return Inner(left @ right.T, (left**2).sum(axis=1), (right**2).sum(axis=1))


def infinite(
    inner: Inner,
    width: int,
    activation: Activation = "relu",
    depth: int = 2,
    weight_variance: float = 2.0,
    bias_variance: float = 0.0,
) -> tuple[Float64Array, Float64Array]:
    """Return (Θ, Σ), the tangent and the Gaussian-process kernel (N, M) of a network of `depth` layers, each infinitely wide.

    Σ¹ = σ_w²⟨x, z⟩/`width` + σ_b² for inputs of `width` numbers, Σ' = σ_w²E[φ(u)φ(v)] + σ_b² with (u, v) ~ N(0, Λ), Λ the block
    of Σ of both; Θ¹ = Σ¹ and Θ' = Θ·σ_w²E[φ'(u)φ'(v)] + Σ'. φ is ReLU or erf (Lee et al. 2019, appendix E; neural-tangents).
    """
    sigma, left, right = (
        weight_variance * of / width + bias_variance for of in (inner.products, inner.left[:, None], inner.right[None, :])
    )
    theta = sigma
    expected = {"relu": _relu, "erf": _erf}[activation]
    for _ in range(depth - 1):
        both, slopes = expected(sigma, left, right)
        theta = weight_variance * (theta * slopes + both) + bias_variance
        sigma = weight_variance * both + bias_variance
        left, right = (weight_variance * expected(of, of, of)[0] + bias_variance for of in (left, right))
    return theta, sigma


def _relu(both: Float64Array, left: Float64Array, right: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return E[φφ] and E[φ'φ'] for ReLU: √(ab)/2π·(sin θ + (π − θ)cos θ) and (π − θ)/2π."""
    lengths = np.sqrt(left * right)
    cosine = np.clip(both / np.maximum(lengths, 1e-300), -1, 1)
    angle = np.arccos(cosine)
    return lengths / (2 * np.pi) * (np.sin(angle) + (np.pi - angle) * cosine), (np.pi - angle) / (2 * np.pi)


def _erf(both: Float64Array, left: Float64Array, right: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return E[φφ] and E[φ'φ'] for erf: (2/π)·asin(2c/√((1 + 2a)(1 + 2b))) and (4/π)/√((1 + 2a)(1 + 2b) − 4c²)."""
    room = (1 + 2 * left) * (1 + 2 * right)
    return 2 / np.pi * np.arcsin(2 * both / np.sqrt(room)), 4 / np.pi / np.sqrt(room - 4 * both**2)


def jacobian(function: Callable[[dict[str, Tensor], Tensor], Tensor], parameters: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """Return ∂f(x)/∂θ (N, P), one row for each x of `rows` (N, …), of a scalar `function` of the parameters and one x."""
    gradients = torch.func.vmap(torch.func.grad(function), in_dims=(None, 0))(dict(parameters), rows)
    return torch.cat([gradient.reshape(len(rows), -1) for gradient in gradients.values()], dim=1)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A kernel's eigenvalues, the largest first (N), none below 0, and its eigenvectors as columns (N, N)."""

    values: Float64Array
    vectors: Float64Array

    @staticmethod
    def of(kernel: Float64Array) -> Spectrum:
        """Return that of a symmetric kernel (N, N); what rounding made negative is 0."""
        values, vectors = np.linalg.eigh((kernel + kernel.T) / 2)
        return Spectrum(np.maximum(values[::-1], 0.0), np.ascontiguousarray(vectors[:, ::-1]))

    @cached_property
    def effective_rank(self) -> float:
        """e^H of the eigenvalues' shares, H their entropy (Roy & Vetterli 2007): 1 for one direction, N for equal ones."""
        share = self.values / self.values.sum()
        share = share[share > 0]
        return float(np.exp(-(share * np.log(share)).sum()))

    @cached_property
    def participation(self) -> float:
        """(Σλ)²/Σλ²: as the effective rank, but what is small counts for less."""
        return float(self.values.sum() ** 2 / (self.values**2).sum())

    def energies(self, targets: Float64Array | sp.csr_array) -> Float64Array:
        """Return the share (N, C) of each target's square, columns of (N, C), that lies along each eigenvector."""
        along = np.asarray(targets.T @ self.vectors).T ** 2  # a sparse matrix stands on the left
        return np.asarray(along / np.maximum(along.sum(axis=0), 1e-300))

    def residual(self, energies: Float64Array, times: Float64Array) -> Float64Array:
        """Return ‖f_t − y‖/‖f_0 − y‖ (T, C) of targets at `times`, in units of 1/(ηλ₁): √Σ_k e_k·e^{−2tλ_k/λ₁}."""
        rates = self.values / self.values[0]
        return np.asarray(np.sqrt(np.exp(-2 * np.outer(times, rates)) @ energies), dtype=np.float64)

    def half_lives(self, energies: Float64Array, longest: float = 1e8) -> Float64Array:
        """Return when each target's residual is half what it was (C), in units of 1/(ηλ₁); inf after `longest`.

        By bisection on a logarithmic scale, to one part in 10⁵.
        """
        low, high = np.full(energies.shape[1], -10.0), np.full(energies.shape[1], np.log(longest))
        rates = self.values / self.values[0]

        def above(logs: Float64Array) -> npt.NDArray[np.bool_]:
            return np.asarray((np.exp(-2 * rates[:, None] * np.exp(logs)[None, :]) * energies).sum(axis=0) > 0.25)

        never = above(high)
        for _ in range(22):
            middle = (low + high) / 2
            later = above(middle)
            low, high = np.where(later, middle, low), np.where(later, high, middle)
        return np.where(never, np.inf, np.exp(high))


def linearised(spectrum: Spectrum, start: Float64Array, targets: Float64Array, time: float) -> Float64Array:
    """Return f_t(X) = Y + e^{−ηΘt}(f_0 − Y) (N, …) by gradient flow on ‖f − Y‖²/2 until `time` ηt."""
    decayed = spectrum.vectors.T @ (start - targets)
    factor = np.exp(-spectrum.values * time)
    return np.asarray(targets + spectrum.vectors @ (factor.reshape(-1, *[1] * (start.ndim - 1)) * decayed))


def smoother(spectrum: Spectrum, cross: Float64Array, ridge: float) -> Float64Array:
    """Return K(x, X)(K(X, X) + ridge·I)⁻¹ (M, N) for `cross` K(x, X) (M, N): times targets (N, C), kernel ridge regression."""
    return np.asarray((cross @ spectrum.vectors / (spectrum.values + ridge)) @ spectrum.vectors.T)


def alignment(kernel: Float64Array, targets: Float64Array | sp.csr_array) -> float:
    """Return ⟨K, YYᵀ⟩/(‖K‖‖YYᵀ‖) for targets Y (N, C): 1 where the kernel is the one to have (Cristianini et al. 2001)."""
    wanted = targets @ targets.T
    wanted = wanted.toarray() if sp.issparse(wanted) else np.asarray(wanted)
    return float((kernel * wanted).sum() / (np.linalg.norm(kernel) * np.linalg.norm(wanted)))
