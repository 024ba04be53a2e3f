"""A sparse mixture of experts behind the queries of another tower: top-K softmax gating (Shazeer et al., ICLR 2017).

q = norm(x + Σ_i p_i·(A_i·x + b_i)) for the unit rows x of the base, p the softmax over the K largest of the gate's scores
β_i·x + c_i, and 0 elsewhere. The largest are chosen with the bias c: without it, an expert that the bias all but rules out
would still take a place from another. K is 2 or more: a softmax over one score is 1 whatever the score, and the gate would
never learn.

Nguyen et al. (arXiv 2309.13850): where the fit has more experts than the truth, several stand for one, and mixing K of them
finds the truth only where K is the size of the K largest groups of such experts together. `Audit` says what a fit has there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.functional import dropout

from dexml.encoders import Encoder
from dexml.errors import InputError
from dexml.towers.base import Tower
from dexml.types import Features

SMALL = (
    0.02  # length of a unit row that an expert maps at the start; at 0 they would be one expert, and the gate without gradient
)
ALIKE = 0.1  # of what two experts that have nothing in common differ by, squared: below, they are one


class MixtureTower(Tower):
    """Queries go through `chosen` of `experts` residual maps behind the tower `base`; labels are the base's. All trains."""

    reads = frozenset()  # whatever its base reads

    def __init__(
        self,
        encoder: Encoder,
        *,
        base: str = "identity",
        base_options: dict[str, Any] | None = None,
        experts: Annotated[int, Ge(2)] = 8,
        chosen: Annotated[int, Ge(2)] = 2,
        dropout: Annotated[float, Ge(0), Le(0.9)] = 0.1,
        rate: Annotated[float, Gt(0)] = 1e-3,
        gate_rate: Annotated[float, Gt(0)] = 3e-3,
        free_rate: Annotated[float, Gt(0)] = 5e-3,
    ) -> None:
        from dexml.towers import TOWERS  # where this tower is a row itself

        super().__init__()
        if chosen > experts:
            raise InputError(f"tower.chosen: {chosen} of {experts} experts (tower.experts) cannot be chosen")
        if not TOWERS[base].reads <= encoder.gives:
            raise InputError(f"tower.base: {base!r} cannot read what this encoder gives, {' and '.join(sorted(encoder.gives))}")
        self.base = TOWERS.build(base, base_options or {}, encoder)
        self.dimension = self.base.dimension
        self.chosen, self.dropout = chosen, dropout
        self.rates = {"experts": rate, "bias": rate, "gate": gate_rate, "gate_bias": gate_rate, "free": free_rate}
        self.experts = nn.Parameter(torch.zeros(experts * self.dimension, self.dimension))  # A_1 … A_k, one below the other
        self.bias = nn.Parameter(torch.zeros(experts, self.dimension))
        self.gate = nn.Parameter(torch.zeros(experts, self.dimension))  # β
        self.gate_bias = nn.Parameter(torch.zeros(experts))  # c

    @torch.no_grad()
    def start_from(self, encoder: Encoder) -> None:
        """Set experts near 0, so that training starts from the base, and a gate that deals rows out at random."""
        self.base.start_from(encoder)
        self.experts.normal_(std=SMALL * self.dimension**-0.5)
        self.bias.zero_()
        self.gate.normal_()  # scores of unit rows have variance 1
        self.gate_bias.zero_()

    def raw(self, features: Features, *, query: bool) -> Tensor:
        """Return x + Σ_i p_i·(A_i·x + b_i) (N, D), with dropout on x in training, or the base's row of a label."""
        self.base.bits = self.bits
        if not query:
            return self.base.raw(features, query=False)
        rows = dropout(self.base.queries(features), self.dropout, training=self.training)
        gates = top_gates(rows @ self.weight("gate").T + self.gate_bias, self.chosen)
        # 0 for a text without a known word, which stays 0.
        gates = gates * rows.any(dim=1, keepdim=True)
        return rows + self._mixed(rows, gates)

    def _mixed(self, rows: Tensor, gates: Tensor) -> Tensor:
        """Return Σ_i p_i·(A_i·x + b_i) (N, D) for gates p (N, k); an expert computes the rows that chose it."""
        whole = torch.compiler.is_exporting()  # a graph has one shape for all texts
        mixed = torch.zeros_like(rows)
        for number, matrix in enumerate(torch.split(self.weight("experts"), self.dimension)):
            own = gates[:, number : number + 1]
            if whole:
                mixed = mixed + own * (rows @ matrix.T + self.bias[number])
                continue
            places = own[:, 0].nonzero()[:, 0]
            mixed = mixed.index_add(0, places, own[places] * (rows[places] @ matrix.T + self.bias[number]))
        return mixed

    def rate(self, parameter: str) -> float:
        """Return the learning rate of a parameter, the base's as the base has it."""
        return self.base.rate(parameter.removeprefix("base.")) if parameter.startswith("base.") else self.rates[parameter]

    def undecayed(self) -> frozenset[str]:
        """Return the base's scales."""
        return frozenset(f"base.{name}" for name in self.base.undecayed())

    @torch.no_grad()
    def audit(self) -> Audit:
        """Return which experts are one: maps alike on unit rows, and gates alike but for their bias."""
        maps = torch.cat([self.experts.reshape(len(self.gate), -1) / self.dimension**0.5, self.bias], dim=1)
        gates = self.gate - self.gate.mean(dim=0)  # what all have in common a softmax does not see
        return Audit.of(torch.maximum(differences(maps), differences(gates)), self.chosen)

    def notes(self) -> tuple[str, ...]:
        """Return what the audit says."""
        return (str(self.audit()),)


def top_gates(scores: Tensor, chosen: int) -> Tensor:
    """Return the softmax over the `chosen` largest scores of each row (N, k), exactly 0 elsewhere."""
    kept, places = scores.topk(chosen, dim=1)
    return torch.zeros_like(scores).scatter(1, places, kept.softmax(dim=1))


def differences(rows: Tensor) -> Tensor:
    """Return ‖r_i − r_j‖² / (‖r_i‖² + ‖r_j‖²) (k, k): 0 of the same row, 1 of two at right angles; 0 of two zeros."""
    wide = rows.double()
    products = wide @ wide.T
    sums = products.diagonal()[:, None] + products.diagonal()
    return ((sums - 2 * products) / sums.clamp(min=torch.finfo(sums.dtype).tiny)).clamp(min=0)


@dataclass(frozen=True)
class Audit:
    """The Voronoi cells of fitted experts, numbers from 0, the largest first: those in one stand for one expert."""

    cells: tuple[tuple[int, ...], ...]
    chosen: int

    @staticmethod
    def of(different: Tensor, chosen: int, alike: float = ALIKE) -> Audit:
        """Return the cells of experts by their `differences` (k, k): whoever is `alike` to one of a cell is in it."""
        count, numbers = connected_components((different <= alike).cpu().numpy(), directed=False)
        cells = (tuple(i for i, number in enumerate(numbers.tolist()) if number == cell) for cell in range(count))
        return Audit(tuple(sorted(cells, key=lambda cell: (-len(cell), cell))), chosen)

    def needed(self, distinct: int) -> int:
        """Return the K that mixes `distinct` experts in every row: the size of the largest so many cells together."""
        return sum(len(cell) for cell in self.cells[:distinct])

    @property
    def enough(self) -> bool:
        """Whether K is as many as that for K distinct experts."""
        return self.chosen >= self.needed(self.chosen)

    def __str__(self) -> str:
        experts = sum(map(len, self.cells))
        if self.enough:
            return f"mixture: {experts} experts, all different, {self.chosen} of them for each query"
        alike = "; ".join(" and ".join(map(str, cell)) for cell in self.cells if len(cell) > 1)
        sure = max((number for number in range(1, self.chosen) if self.needed(number) <= self.chosen), default=1)
        wide = min(self.needed(self.chosen), experts)
        return (
            f"mixture: of {experts} experts {alike} are alike, so that the {self.chosen} chosen for a query may be {sure} "
            f"distinct: set tower.experts to {len(self.cells)}, or tower.chosen to {wide}"
        )
