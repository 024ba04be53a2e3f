"""Kernels against their definitions, and a network against both: width, PSD, the linear model of its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from dexml.analysis.ntk import Inner, Spectrum, alignment, infinite, linearised, smoother

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_ntk

    return bench_ntk


def test_kernels_come_near_the_infinite_one_as_the_root_of_the_width(bench):
    rows, _ = bench.inputs(20)
    widths = (64, 256, 1024)
    deviations = [bench.deviation(width, 8, rows) for width in widths]
    assert -0.6 < bench.slope(widths, deviations) < -0.4
    assert deviations[-1] < 0.1


def test_a_wide_network_trains_as_its_linear_model(bench):
    rows, targets = bench.inputs(20)
    found = bench.train(2048, 0, rows, targets, steps=400)
    assert found.gap <= 0.05
    assert found.rates == pytest.approx([1, 1, 1], abs=0.1)
    assert found.least_eigenvalue > 0, "PSD"


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_deep_kernels_are_the_expectations_they_stand_for(activation: str):
    """Σ and Θ of three layers, from 2·10⁵ draws of the Gaussians of each layer."""
    generator = np.random.default_rng(0)
    pair = generator.standard_normal((2, 5))
    act, slope = {
        "relu": (lambda u: np.maximum(u, 0), lambda u: (u > 0).astype(float)),
        "erf": (torch.erf, lambda u: 2 / np.sqrt(np.pi) * np.exp(-(u**2))),
    }[activation]
    sigma = 1.5 * pair @ pair.T / 5 + 0.1
    theta = sigma.copy()
    for _ in range(2):
        drawn = generator.multivariate_normal(np.zeros(2), sigma, 200_000).T
        outputs = np.asarray(act(torch.from_numpy(drawn)) if activation == "erf" else act(drawn))
        slopes = slope(drawn)
        sigma = 1.5 * outputs @ outputs.T / drawn.shape[1] + 0.1
        theta = theta * 1.5 * (slopes @ slopes.T) / drawn.shape[1] + sigma
    found, process = infinite(Inner.of(pair), 5, activation, 3, weight_variance=1.5, bias_variance=0.1)
    assert process == pytest.approx(sigma, rel=0.03)
    assert found == pytest.approx(theta, rel=0.03)


def test_a_linear_network_has_the_kernel_of_inner_products():
    rows = np.random.default_rng(0).standard_normal((6, 3))
    theta, sigma = infinite(Inner.of(rows), 3, depth=1, weight_variance=3.0)
    assert theta == pytest.approx(rows @ rows.T) and sigma == pytest.approx(theta)


def test_a_spectrum_says_what_learns_first():
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    values = np.array([32.0, 16, 8, 4, 2, 1])
    kernel = (vectors * values) @ vectors.T
    spectrum = Spectrum.of(kernel)
    assert spectrum.values == pytest.approx(values)
    targets = np.stack([vectors[:, 0], vectors[:, 3], vectors[:, 0] + vectors[:, 5]], axis=1)
    energies = spectrum.energies(targets)
    assert spectrum.energies(sp.csr_array(targets)) == pytest.approx(energies)
    assert energies[:, 2] == pytest.approx([0.5, 0, 0, 0, 0, 0.5])
    halves = spectrum.half_lives(energies)
    assert halves[:2] == pytest.approx([np.log(2), 8 * np.log(2)], rel=1e-4)
    assert spectrum.residual(energies, np.array([0.0, halves[2]]))[:, 2] == pytest.approx([1, 0.5], rel=1e-4)
    assert Spectrum.of(np.eye(7)).effective_rank == pytest.approx(7)
    assert Spectrum.of(np.eye(7)).participation == pytest.approx(7)
    rank_one = Spectrum.of(np.outer(values, values))
    assert rank_one.effective_rank == pytest.approx(1) and (rank_one.values >= 0).all()
    assert np.isinf(rank_one.half_lives(rank_one.energies(np.array([[-1.0], [2], [0], [0], [0], [0]])))).all()
    assert alignment(kernel, vectors[:, :1]) == pytest.approx(32 / np.linalg.norm(values))


def test_flow_and_ridge_are_those_of_the_kernel():
    generator = np.random.default_rng(0)
    rows, targets, start = generator.standard_normal((6, 8)), generator.standard_normal((6, 2)), np.ones((6, 2))
    kernel = rows @ rows.T
    spectrum = Spectrum.of(kernel)
    assert linearised(spectrum, start, targets, 0.0) == pytest.approx(start)
    assert linearised(spectrum, start, targets, 1e6) == pytest.approx(targets)
    current = start.copy()
    for _ in range(4000):
        current -= 1e-4 * kernel @ (current - targets)
    assert linearised(spectrum, start, targets, 0.4) == pytest.approx(current, abs=1e-2)
    cross = generator.standard_normal((3, 8)) @ rows.T
    wanted = cross @ np.linalg.solve(kernel + 0.3 * np.eye(6), targets)
    assert smoother(spectrum, cross, 0.3) @ targets == pytest.approx(wanted)
