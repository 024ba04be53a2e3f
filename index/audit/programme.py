"""The smallest push that satisfies inequalities, and the proof that none does: least-distance programming.

Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23. n inequalities G z ≥ h with rows G (n, D). All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

Float64Array = npt.NDArray[np.float64]
_NONE = 1e-8  # the length of the residual below which there is no solution; it is 1/√(1 + ‖x‖²) where there is one
_STEPS = 30  # of the active-set method, times n


@dataclass(frozen=True, eq=False)
class Certificate:
    """Why a list is out of reach: weights λ ≥ 0 (n), of sum 1, of inequalities between labels `better` and `worse` int64 (n).

    For every unit z, the least of the n margins ⟨e_better − e_worse, z⟩ is at most their weighted mean, and that at most
    `bound` = ‖Σ λ_i (e_better_i − e_worse_i)‖: the Farkas vector of G z > 0 where `bound` is 0.
    """

    better: npt.NDArray[np.int64]
    worse: npt.NDArray[np.int64]
    weights: Float64Array
    bound: float

    def holds(self, rows: Float64Array, margin: float) -> bool:
        """Return whether it proves, over label rows float64 (L, D), that no unit vector keeps every `margin`."""
        weights = self.weights
        if len(weights) == 0 or weights.min() < 0 or abs(weights.sum() - 1) > 1e-9:
            return False
        return float(np.linalg.norm(weights @ (rows[self.better] - rows[self.worse]))) <= margin


def nearest(rows: Float64Array, at: float, query: Float64Array) -> tuple[Float64Array, Float64Array] | None:
    """Return the z (D) nearest to `query` with `rows` z ≥ `at`, and multipliers (n) above 0 where it is equal; None without z.

    min ‖x‖, G x ≥ h is the non-negative least squares of [Gᵀ; hᵀ] u ≈ (0, …, 0, 1): x = −r_{1…D}/r_{D+1} of its residual r.
    Raises RuntimeError where the active-set method does not end.
    """
    wanted = at - rows @ query
    residual, multipliers = _residual(rows, wanted)
    if np.linalg.norm(residual) < _NONE:
        return None
    return query - residual[:-1] / residual[-1], multipliers


def widest(rows: Float64Array) -> tuple[float, Float64Array]:
    """Return the largest margin μ that a unit vector keeps in all `rows` (n, D), at least 0, and weights λ (n) that prove it.

    max_{‖z‖ = 1} min_i ⟨g_i, z⟩ is the distance of 0 from the convex hull of the rows, ‖Σ λ_i g_i‖.
    """
    _, multipliers = _residual(rows, np.ones(len(rows)))
    weights: Float64Array = multipliers / multipliers.sum()
    return float(np.linalg.norm(weights @ rows)), weights


def _residual(rows: Float64Array, wanted: Float64Array) -> tuple[Float64Array, Float64Array]:
    matrix = np.vstack([rows.T, wanted])
    target = np.zeros(len(matrix))
    target[-1] = 1
    multipliers: Float64Array = nnls(matrix, target, maxiter=_STEPS * len(wanted))[0]
    residual: Float64Array = matrix @ multipliers - target
    return residual, multipliers
