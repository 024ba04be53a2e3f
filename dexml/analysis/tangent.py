"""The tangent kernel of a tower's query side, over frozen features, without the gradients of whole feature tables.

A query's gradient of a feature table is in the rows of its own features alone: each query is given a table of just those.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from dexml.analysis.dags import Float64Array
from dexml.errors import InputError
from dexml.towers import Tower
from dexml.types import Bag, Features

TABLE = "table"  # the parameter whose rows a bag names
MOST_BYTES = 4 << 30  # of gradients held at a time

Told = Callable[[int, int], None]
"""Hears how many gradients there are, and of how many."""


class _Queries(nn.Module):
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, features: Features) -> Tensor:
        return self.tower.queries(features)


def trained(tower: Tower) -> dict[str, nn.Parameter]:
    """Return the parameters of a tower that move with training, by name: not what a base keeps, nor labels' free vectors."""
    return {name: value for name, value in tower.named_parameters() if value.requires_grad and name.split(".")[-1] != "free"}


def tower_kernel(tower: Tower, features: Features, directions: Tensor, told: Told = lambda done, of: None) -> Float64Array:
    """Return Θ (N, N) of the query rows q(x) of `features` (N), the mean over `directions` v (R, D) of that of ⟨v, q(x)⟩.

    With label rows as directions these are the label's scores; with random ones of length 1 the mean is tr Θ/D in
    expectation, as of the sum of outputs (Mohamadi, Bae & Sutherland, ICML 2023). Raises InputError for a tower without
    trained parameters, and where the gradients are more than 4 GiB.
    """
    tower.eval()
    parameters = trained(tower)
    if not parameters:
        raise InputError("the tower has no trained parameters on the query side")
    module = _Queries(tower)
    tables = [] if features.bag is None else [name for name in parameters if name.split(".")[-1] == TABLE]
    dense = {name: value for name, value in parameters.items() if name not in tables}
    width = sum(value.numel() for value in dense.values())
    rare = 0 if features.bag is None else sum(parameters[name][0].numel() for name in tables) * len(features.bag.features)
    if (held := 4 * (len(features) * width + rare)) > MOST_BYTES:
        raise InputError(f"gradients of {len(features)} rows take {held / 2**30:.1f} GiB; ask for fewer rows")
    kernel = np.zeros((len(features), len(features)))
    for number, direction in enumerate(directions):
        jacobian = torch.zeros(len(features), width)
        sparse: list[list[tuple[Tensor, Tensor]]] = [[] for _ in tables]
        for row in range(len(features)):
            rows, own = _own(features.take(torch.tensor([row])))
            leaves = {name: nn.Parameter(parameters[name].detach()[rows]) for name in tables}
            swapped: dict[str, Tensor] = {f"tower.{name}": leaf for name, leaf in leaves.items()}
            score = torch.func.functional_call(module, swapped, (own,))[0] @ direction
            at = [*leaves.values(), *dense.values()]
            gradients = torch.autograd.grad(score, at, allow_unused=True, materialize_grads=True)
            for place in range(len(tables)):
                sparse[place].append((rows, gradients[place]))
            if dense:
                torch.cat([gradient.reshape(-1) for gradient in gradients[len(tables) :]], out=jacobian[row])
            if row % 64 == 0:
                told(number * len(features) + row, len(directions) * len(features))
        kernel += (jacobian @ jacobian.T).double().numpy()
        for of_table in sparse:
            _add_products(kernel, of_table)
    return kernel / len(directions)


def _own(features: Features) -> tuple[Tensor, Features]:
    """Return which rows of a table one query's features name (k), and the features that name 0 … k − 1 instead."""
    bag = features.bag
    if bag is None:
        return torch.zeros(0, dtype=torch.int64), features
    rows, places = torch.unique(bag.features, return_inverse=True)
    if len(rows) == 0:
        return torch.zeros(1, dtype=torch.int64), features  # a table without a row cannot be read
    return rows, Features(features.dense, Bag(bag.offsets, places, bag.weights), features.tokens)


def _add_products(kernel: Float64Array, gradients: list[tuple[Tensor, Tensor]]) -> None:
    """Add ⟨G_i, G_j⟩ of gradients (k_i, D) of the rows of a table that each query i names, over the rows both name."""
    rows = torch.cat([of for of, _ in gradients]).numpy()
    queries = np.repeat(np.arange(len(gradients)), [len(of) for of, _ in gradients])
    values = torch.cat([of for _, of in gradients]).numpy()
    order = np.argsort(rows, kind="stable")
    edges = np.flatnonzero(np.diff(rows[order], prepend=-1, append=-1))
    for start, end in pairwise(edges):
        places = order[start:end]
        of_row = values[places]
        kernel[np.ix_(queries[places], queries[places])] += of_row @ of_row.T
