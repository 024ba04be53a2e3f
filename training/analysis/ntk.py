"""`dexml analyze ntk`: tangent kernels of a run's query side, what they learn first, and kernel ridge on frozen features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from data.validation import split_by_labels
from dexml import metrics
from dexml.analysis.dags import Float64Array
from dexml.analysis.ntk import Activation, Inner, Spectrum, alignment, infinite, smoother
from dexml.analysis.tangent import tower_kernel, trained
from dexml.errors import InputError
from dexml.model import DualEncoder
from dexml.towers import TOWERS
from dexml.types import Features, Float32Array, Int64Array, Positives, Split

MOST_ROWS = 2000  # of which a kernel is solved: its cost grows with their cube
HELD_OUT = 0.2  # of the rows, to choose the ridge
RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # times the mean eigenvalue
LEAST = 3  # rows of a label whose time is told
SCORED = 1 << 25  # scores held at a time
CUTOFFS = (1, 3, 5)
WIDE: Mapping[str, Activation | None] = {"linear": None, "ReLU, two layers": "relu", "erf, two layers": "erf"}
TRAINED, START = "trained", "at the start"
GROUPS = 3  # of labels by rows
TIMES = np.geomspace(0.1, 1e5, 61)

Told = Callable[[str], None]
"""Hears what is done."""


@dataclass(frozen=True)
class Asked:
    """Kernels of `rows` training rows, drawn with `seed`, over so many `directions`: label rows, or random ones."""

    rows: int = 500
    directions: int = 8
    along: Literal["labels", "random"] = "labels"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel of the rows: its spectrum, its alignment with the labels, and the share of their squares by eigenvector (N)."""

    spectrum: Spectrum
    alignment: float
    energy: Float64Array

    def reach(self, share: float) -> int:
        """Return along how many of the first eigenvectors a share of the labels' squares lies."""
        return int(np.searchsorted(np.cumsum(self.energy), share - 1e-9) + 1)


@dataclass(frozen=True, eq=False)
class Learning:
    """When labels are learned by one kernel: numbers, rows and half-lives (C), and residuals (T) of groups by rows."""

    labels: Int64Array
    counts: Int64Array
    half_lives: Float64Array
    residuals: dict[str, Float64Array]


@dataclass(frozen=True)
class Ridge:
    """Kernel ridge regression of the labels on frozen features: the ridge chosen, times the mean eigenvalue, P@k in percent."""

    ridge: float
    held_out: tuple[float, ...]
    precision: tuple[float, ...]


@dataclass(eq=False)
class Found:
    """What was found of the training `rows` (N): kernels by name, learning by the one at the start, and how far Θ moved.

    `ridges` by kernel are of `ridge_rows` training rows. `drift` is ‖Θ_T − Θ_0‖/‖Θ_0‖, `turn` what is left of it when both are
    of length 1; NaN where no kernel is empirical, and then `note` says why.
    """

    rows: Int64Array
    kernels: dict[str, Kernel] = field(default_factory=dict)
    learning: Learning | None = None
    ridges: dict[str, Ridge] = field(default_factory=dict)
    ridge_rows: int = 0
    tested: int = 0
    parameters: int = 0
    drift: float = float("nan")
    turn: float = float("nan")
    note: str = ""


def measure(model: DualEncoder, labels: Tensor, train: Split, test: Split, asked: Asked, told: Told) -> Found:
    """Return what is found of a `model` with label rows `labels` (L, D), by numbers of the data set, on rows of its splits."""
    drawn = np.sort(np.random.default_rng(asked.seed).permutation(len(train))[:MOST_ROWS])
    told("reading texts into features")
    of_train = train.take(drawn)
    features, of_test = model.encoder.encode_many(of_train.texts), model.encoder.encode_many(test.texts)
    chosen = np.sort(np.random.default_rng(asked.seed).permutation(len(drawn))[: asked.rows])
    found = Found(drawn[chosen], tested=len(test), ridge_rows=len(drawn))
    positives = of_train.positives.take(chosen)
    if not len(positives.indices):
        raise InputError("data: none of the rows drawn has a label")
    own = features.take(torch.from_numpy(chosen))
    inner = products(features, features)
    _empirical(found, model, labels, own, positives, asked, told)
    told("kernels of infinitely wide networks")
    of_rows = Inner(inner.products[np.ix_(chosen, chosen)], inner.left[chosen], inner.right[chosen])
    for name in WIDE:
        found.kernels[name] = described(wide(name, of_rows), positives)
    first = START if START in found.kernels else next(iter(found.kernels))
    found.learning = learning(found.kernels[first].spectrum, positives)
    across = products(of_test, features)
    for name in WIDE:
        told(f"kernel ridge regression, {name}")
        found.ridges[name] = ridge(wide(name, inner), wide(name, across), of_train.positives, test, asked.seed)
    return found


def _empirical(
    found: Found, model: DualEncoder, labels: Tensor, own: Features, positives: Positives, asked: Asked, told: Told
) -> None:
    """Add the kernels of the tower as it is, and as it started, and how far one is from the other."""
    if not trained(model.tower):
        found.note = (
            f"the bundle's tower {model.tower_name!r} has no parameters of its own on the query side (a residual tower over a "
            "transformer is merged into it when it is exported), so that there is no empirical kernel"
        )
        return
    random = np.random.default_rng(asked.seed)
    if asked.along == "labels":
        there = np.unique(positives.indices)
        directions = labels[torch.from_numpy(random.permutation(there)[: asked.directions])]
    else:
        numbers = random.standard_normal((asked.directions, model.dimension)).astype(np.float32)
        directions = torch.nn.functional.normalize(torch.from_numpy(numbers), dim=1)
    torch.manual_seed(asked.seed)
    start = TOWERS.build(model.tower_name, model.tower_options, model.encoder)
    start.start_from(model.encoder)
    kernels = {}
    for name, tower in ((START, start), (TRAINED, model.tower)):

        def counted(done: int, of: int, name: str = name) -> None:
            told(f"gradients of the tower {name}: {100 * done // of}%")

        kernels[name] = tower_kernel(tower, own, directions, counted)
        found.kernels[name] = described(kernels[name], positives)
    before, after = kernels[START], kernels[TRAINED]
    found.parameters = sum(value.numel() for value in trained(model.tower).values())
    found.drift = float(np.linalg.norm(after - before) / np.linalg.norm(before))
    found.turn = float(np.linalg.norm(after / np.linalg.norm(after) - before / np.linalg.norm(before)))


def products(left: Features, right: Features) -> Inner:
    """Return inner products of frozen features, dense parts and bags side by side."""
    inner = np.zeros((len(left), len(right)))
    squares = [np.zeros(len(of)) for of in (left, right)]
    if left.dense is not None and right.dense is not None:
        rows = [of.double().numpy() for of in (left.dense, right.dense)]
        inner += rows[0] @ rows[1].T
        squares = [square + (of**2).sum(axis=1) for square, of in zip(squares, rows, strict=True)]
    if left.bag is not None and right.bag is not None:
        wide = 1 + max((int(bag.features.max()) if len(bag.features) else 0) for bag in (left.bag, right.bag))
        bags = [
            sp.csr_array((bag.weights.double().numpy(), bag.features.numpy(), bag.offsets.numpy()), shape=(len(bag), wide))
            for bag in (left.bag, right.bag)
        ]
        inner += (bags[0] @ bags[1].T).toarray()
        squares = [square + np.asarray(of.power(2).sum(axis=1)) for square, of in zip(squares, bags, strict=True)]
    return Inner(inner, *squares)


def wide(name: str, inner: Inner) -> Float64Array:
    """Return the tangent kernel of an infinitely wide network without biases, or the inner products themselves."""
    activation = WIDE[name]
    return inner.products if activation is None else infinite(inner, 1, activation)[0]


def described(kernel: Float64Array, positives: Positives) -> Kernel:
    """Return what is told of a kernel (N, N) beside the labels of its rows."""
    spectrum, targets = Spectrum.of(kernel), positives.matrix().astype(np.float64)
    along = np.asarray((targets.T @ spectrum.vectors) ** 2).sum(axis=0)
    return Kernel(spectrum, alignment(kernel, targets), along / along.sum())


def learning(spectrum: Spectrum, positives: Positives) -> Learning:
    """Return when each label of at least LEAST rows is learned, and the residuals of the labels in groups by rows."""
    counts = positives.counts()
    labels = np.flatnonzero(counts >= min(LEAST, int(counts.max())))
    targets = sp.csc_array(positives.matrix().astype(np.float64))
    halves, left = np.zeros(len(labels)), np.zeros((len(labels), len(TIMES)))
    for start in range(0, len(labels), 500):
        energies = spectrum.energies(sp.csr_array(targets[:, labels[start : start + 500]]))
        halves[start : start + 500] = spectrum.half_lives(energies)
        left[start : start + 500] = spectrum.residual(energies, TIMES).T
    of = counts[labels]
    bounds = np.unique(np.quantile(of, np.linspace(0, 1, GROUPS + 1)).astype(np.int64))
    if len(bounds) == 1:
        bounds = np.append(bounds, bounds[0])
    residuals = {}
    for low, high in pairwise(bounds):
        inside = (of > low if low > bounds[0] else of >= low) & (of <= high)
        first = int(low) + (low > bounds[0])
        residuals[f"labels of {first} to {high} rows" if first < high else f"labels of {high} rows"] = left[inside].mean(axis=0)
    return Learning(labels.astype(np.int64), of, halves, residuals)


def ridge(kernel: Float64Array, across: Float64Array, positives: Positives, test: Split, seed: int) -> Ridge:
    """Return kernel ridge regression of labels (N, L) by a kernel (N, N), asked for test rows by `across` (M, N).

    The ridge is that with the best P@1 + P@3 + P@5 on rows held out of the N.
    """
    kept, held = split_by_labels(positives, HELD_OUT, seed)
    if not len(held):
        raise InputError("data: too few training rows to hold some out")
    spectrum, known = Spectrum.of(kernel[np.ix_(kept, kept)]), positives.take(kept)
    truth, part = positives.take(held), kernel[np.ix_(held, kept)]
    tried = []
    for factor in RIDGES:
        weights = smoother(spectrum, part, factor * float(spectrum.values.mean()))
        tried.append((_precision(weights, known, truth, None), factor))
    best, factor = max(tried, key=lambda one: sum(one[0]))
    whole = Spectrum.of(kernel)
    weights = smoother(whole, across, factor * float(whole.values.mean()))
    return Ridge(factor, best, _precision(weights, positives, test.positives, test.excluded))


def _precision(weights: Float64Array, known: Positives, truth: Positives, excluded: Positives | None) -> tuple[float, ...]:
    """Return P@k of the scores `weights` (M, N) times the labels `known` (N, L), in blocks of rows."""
    labels, ranked = known.matrix(), []
    each = max(1, SCORED // known.num_labels)
    for start in range(0, len(weights), each):
        scores: Float32Array = np.asarray((labels.T @ weights[start : start + each].T.astype(np.float32)).T)
        if excluded is not None:
            for row in range(len(scores)):
                scores[row, excluded.row(start + row)] = -np.inf
        k = min(CUTOFFS[-1], known.num_labels)
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        ranked.append(np.take_along_axis(best, order, axis=1))
    answers = np.concatenate(ranked).astype(np.int64)
    return tuple(metrics.precision_at(answers, truth, k) for k in CUTOFFS if k <= answers.shape[1])
