"""Random features: the mean is the function, the error falls as m^−½, two reals are a complex number, FAISS finds the best."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from dexml.kernel_features import Function, KernelFeatures, directions

FUNCTIONS: list[Function] = ["relu", "cos", "sin"]


def unit(count: int, width: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_error_falls_with_the_root_of_the_features(function: Function):
    """A slope of −½ ± 0.15 over 100 seeds, d = 16; benchmarks/bench_snnk.py has the curve to 16,384 features."""
    counts, errors = (32, 128, 512), []
    for count in counts:
        squares = []
        for seed in range(100):
            x, w = unit(8, 16, 1000 + seed), unit(8, 16, 2000 + seed)
            features = KernelFeatures(16, count, function, seed)
            squares.append((features.of_inputs(x) @ features.of_weights(w).T - features.exact(x, w)).square().mean())
        errors.append(torch.stack(squares).mean().sqrt().item())
    slope = math.log(errors[-1] / errors[0]) / math.log(counts[-1] / counts[0])
    assert -0.65 <= slope <= -0.35
    assert errors[-1] < 0.1


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_mean_is_the_function_of_a_bias_and_of_any_lengths(function: Function):
    x, w = 0.7 * unit(4, 6, 1), 1.2 * unit(5, 6, 2)
    bias = torch.linspace(-2, 2, 5)[:, None]
    every = [KernelFeatures(6, 512, function, seed, damping=0.03) for seed in range(60)]
    mean = torch.stack([features.of_inputs(x) @ features.of_weights(w, bias).T for features in every]).mean(dim=0)
    assert torch.allclose(mean, every[0].exact(x, w, bias.T), atol=0.03)


@pytest.mark.parametrize("damping", [0.0, 0.04])
def test_twice_as_many_reals_are_the_real_part_of_complex_products(damping: float):
    """The paper's Φ and Ψ in complex float64, and no conjugate."""
    features = KernelFeatures(16, 64, "cos", 3, damping).double()
    x, w = unit(7, 16, 1).double(), unit(9, 16, 2).double()
    bias = torch.linspace(-3, 3, 9, dtype=torch.float64)[:, None]
    g, a = features.directions.to(torch.complex128), complex(math.sqrt(0.5), math.sqrt(0.5))

    def complex_rows(rows: torch.Tensor) -> torch.Tensor:
        exponent = math.sqrt(1 + 4 * damping) * a * (rows + 0j) @ g.T - a * a * rows.square().sum(dim=1, keepdim=True) / 2
        return torch.exp(exponent - damping * features.directions.square().sum(dim=1)) * (1 + 4 * damping) ** 4 / 8

    whole = (complex_rows(x) @ (complex_rows(w) * torch.exp(1j * bias)).T).real
    assert (features.of_inputs(x) @ features.of_weights(w, bias).T - whole).abs().max() <= 1e-6
    sine = KernelFeatures(16, 64, "sin", 3, damping).double()
    whole = (complex_rows(x) @ (complex_rows(w) * torch.exp(1j * bias) * -1j).T).real
    assert (sine.of_inputs(x) @ sine.of_weights(w, bias).T - whole).abs().max() <= 1e-6


def test_directions_are_opposite_pairs_at_right_angles_and_the_seeds():
    drawn = directions(8, 40, 5, alike=True)
    assert drawn.shape == (40, 8) and torch.equal(drawn, directions(8, 40, 5, alike=True))
    assert not torch.equal(drawn, directions(8, 40, 6, alike=True))
    assert torch.equal(drawn[::2], -drawn[1::2])
    block = drawn[::2][:8]
    assert torch.allclose(block @ block.T, 8 * torch.eye(8), atol=1e-4)
    assert directions(8, 3, 5, alike=False).shape == (3, 8), "any number of them"
    lengths = directions(16, 4096, 0, alike=False).square().sum(dim=1)
    assert lengths.mean().item() == pytest.approx(16, rel=0.05) and lengths.std().item() == pytest.approx(32**0.5, rel=0.1)


def test_faiss_over_label_features_finds_what_the_function_ranks_first():
    """Recall of the exact top ten at m = 4096, d = 16; the benchmark has other functions, sizes and a trained bundle's rows."""
    pytest.importorskip("faiss", exc_type=ImportError)
    import faiss

    labels, queries = unit(1000, 16, 1), unit(50, 16, 2)
    features = KernelFeatures(16, 4096, "relu", 0)
    index = faiss.IndexFlatIP(features.dimension)
    index.add(features.of_weights(labels).numpy())
    _, found = index.search(features.of_inputs(queries).numpy(), 10)
    best = features.exact(queries, labels).topk(10).indices.tolist()
    recall = sum(len(set(one) & set(other)) for one, other in zip(best, found.tolist(), strict=True)) / (10 * len(queries))
    assert recall >= 0.9
