"""The tangent kernel of two-layer ReLU networks of growing width against the infinite one's; training against its linear model.

python benchmarks/bench_ntk.py [--widths 64 256 1024 4096] [--seeds 8] [--rows 20]
Prints the tables and writes benchmarks/results/ntk.json; three minutes on one core.

Inputs are `rows` points of N(0, I) in ten dimensions, targets N(0, 1); the network is f(x) = √(2/m)·a·relu(√(2/10)·Wx) with m
hidden units, all weights N(0, 1), trained by gradient descent on ‖f − Y‖²/2 at η = 0.02/λ₁. Slopes are of
logarithms over widths.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from machine import describe, write_result
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dexml.analysis.ntk import Inner, Spectrum, infinite, jacobian, linearised

DIMENSION = 10
STEP = 0.02  # ηλ₁
STEPS = 1500
DECAYING = (0.3, 0.9)  # of a residual along an eigenvector: where its rate is read off


def output(parameters: dict[str, Tensor], row: Tensor, activation: Callable[[Tensor], Tensor] = torch.relu) -> Tensor:
    """Return f(x) of a two-layer network in NTK parametrisation."""
    hidden = activation(parameters["first"] @ row * (2 / len(row)) ** 0.5)
    scale: float = (2 / len(hidden)) ** 0.5
    return scale * (parameters["last"] @ hidden)


def network(width: int, seed: int) -> dict[str, Tensor]:
    """Return standard normal parameters, float64."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "first": torch.randn(width, DIMENSION, generator=generator, dtype=torch.float64),
        "last": torch.randn(width, generator=generator, dtype=torch.float64),
    }


def inputs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return points (N, 10) and targets (N)."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, *more, generator=generator, dtype=torch.float64) for more in ((DIMENSION,), ()))  # type: ignore[return-value]


def kernel(parameters: dict[str, Tensor], rows: Tensor, activation: Callable[[Tensor], Tensor] = torch.relu) -> Any:
    """Return the empirical kernel float64 (N, N)."""
    gradients = jacobian(partial(output, activation=activation), parameters, rows)
    return (gradients @ gradients.T).numpy()


def deviation(width: int, seeds: int, rows: Tensor) -> float:
    """Return ‖Θ̂ − Θ‖/‖Θ‖ of networks of a width, the root of the mean square over seeds."""
    wanted, _ = infinite(Inner.of(rows.numpy()), DIMENSION)
    found = [np.linalg.norm(kernel(network(width, seed), rows) - wanted) for seed in range(seeds)]
    return float(np.sqrt(np.mean(np.square(found))) / np.linalg.norm(wanted))


@dataclass(frozen=True)
class Trained:
    """Gradient descent beside its linear model: the largest ‖f_t − f_lin‖/‖f_t − f_0‖, decay rates over ηλ_i, Θ's drift."""

    width: int
    seed: int
    gap: float
    rates: tuple[float, ...]
    drift: float
    least_eigenvalue: float
    """Over the largest."""


def train(width: int, seed: int, rows: Tensor, targets: Tensor, *, steps: int = STEPS, top: int = 3) -> Trained:
    """Train a network of a width, and compare."""
    parameters = {name: value.requires_grad_() for name, value in network(width, seed).items()}
    before = kernel({name: value.detach() for name, value in parameters.items()}, rows)
    spectrum = Spectrum.of(before)
    rate = STEP / spectrum.values[0]
    path = []
    for _ in range(steps + 1):
        outputs = torch.func.vmap(output, in_dims=(None, 0))(parameters, rows)
        path.append(outputs.detach().numpy())
        gradients = torch.autograd.grad(((outputs - targets) ** 2).sum() / 2, list(parameters.values()))
        with torch.no_grad():
            for value, gradient in zip(parameters.values(), gradients, strict=True):
                value -= rate * gradient
    wanted, start = targets.numpy(), path[0]
    gaps = [
        np.linalg.norm(found - linearised(spectrum, start, wanted, rate * step)) / np.linalg.norm(found - start)
        for step, found in enumerate(path)
        if step >= 10
    ]
    after = kernel({name: value.detach() for name, value in parameters.items()}, rows)
    return Trained(
        width,
        seed,
        float(max(gaps)),
        tuple(_decay(np.array(path) - wanted, spectrum, place, rate) for place in range(top)),
        float(np.linalg.norm(after - before) / np.linalg.norm(before)),
        float(np.linalg.eigvalsh(before)[0] / spectrum.values[0]),
    )


def _decay(residuals: Any, spectrum: Spectrum, place: int, rate: float) -> float:
    """Return the rate at which a residual (T, N) falls along an eigenvector, over ηλ, while it is in DECAYING of its start."""
    along = residuals @ spectrum.vectors[:, place] / (residuals[0] @ spectrum.vectors[:, place])
    steps = np.flatnonzero((along > DECAYING[0]) & (along < DECAYING[1]))
    steps = steps[: np.argmax(np.diff(steps, append=steps[-1] + 2) > 1) + 1]  # the first stretch
    slope = np.polyfit(steps, np.log(along[steps]), 1)[0]
    return float(-slope / (rate * spectrum.values[place]))


def slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """Return d log value / d log width."""
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--seeds", type=int, default=8, help="of networks whose kernel is compared")
    parser.add_argument("--trained", type=int, default=6, help="of networks that are trained")
    parser.add_argument("--rows", type=int, default=20)
    given = parser.parse_args()
    rows, targets = inputs(given.rows)
    console = Console()
    deviations = [deviation(width, given.seeds, rows) for width in given.widths]
    trained = [train(width, seed, rows, targets) for width in given.widths for seed in range(given.trained)]
    drifts = [float(np.mean([of.drift for of in trained if of.width == width])) for width in given.widths]
    table = Table(title="two-layer ReLU networks")
    for head in ("width", "‖Θ̂ − Θ‖/‖Θ‖", "‖f − f_lin‖/‖f − f_0‖", "rates over ηλ, top 3", "drift of Θ", "least λ/λ₁"):
        table.add_column(head, justify="right")
    for number, width in enumerate(given.widths):
        own = [of for of in trained if of.width == width]
        rates = np.array([of.rates for of in own])
        table.add_row(
            str(width),
            f"{deviations[number]:.4f}",
            f"{max(of.gap for of in own):.4f}",
            f"{rates.min():.3f} … {rates.max():.3f}",
            f"{drifts[number]:.4f}",
            f"{min(of.least_eigenvalue for of in own):.1e}",
        )
    console.print(table)
    slopes = {"deviation": slope(given.widths, deviations), "drift": slope(given.widths, drifts)}
    said = f"slope of the deviation {slopes['deviation']:.3f}, of the drift {slopes['drift']:.3f}"
    console.print(f"{said}; theory says −0.5 of the first, and at most that of the second")
    result = {
        "machine": describe(),
        "setting": {"rows": given.rows, "dimension": DIMENSION, "seeds": given.seeds, "step": STEP, "steps": STEPS},
        "widths": given.widths,
        "deviations": deviations,
        "trained": [asdict(of) for of in trained],
        "slopes": slopes,
    }
    console.print(str(write_result("ntk", result)))


if __name__ == "__main__":
    main()
