"""A mixture of experts behind a tower: its gate, what it starts as, and the audit of experts that are one twice."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dexml.encoders import ENCODERS
from dexml.errors import InputError
from dexml.towers import TOWERS
from dexml.towers.mixture import Audit, MixtureTower, differences, top_gates
from dexml.types import Features

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
TEXTS = ["sorting arrays", "a matrix", "the fast Fourier transform", "", "clustering of points"]


def built(**options: object) -> MixtureTower:
    torch.manual_seed(0)
    encoder = ENCODERS.build("bag")
    encoder.fit(TEXTS * 2)
    tower = TOWERS.build(
        "mixture", {"base": "tokens", "base_options": {"dimension": 16, "start": "random"}, **options}, encoder
    )
    assert isinstance(tower, MixtureTower)
    tower.start_from(encoder)
    return tower


def features() -> Features:
    encoder = ENCODERS.build("bag")
    encoder.fit(TEXTS * 2)
    return encoder.encode(TEXTS)


def test_gates_are_a_softmax_over_the_largest_and_nothing_elsewhere():
    gates = top_gates(torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, -1.0, 4.0, 4.5]], dtype=torch.float64), 2)
    share = 1 / (1 + math.exp(-1))
    assert gates[0].tolist() == pytest.approx([0, share, 0, 1 - share])
    share = 1 / (1 + math.exp(-0.5))
    assert gates[1].tolist() == pytest.approx([share, 0, 0, 1 - share])


def test_the_bias_takes_part_in_the_choice():
    tower = built(experts=3)
    with torch.no_grad():
        tower.gate_bias[1] = -100.0
        tower.bias.copy_(torch.eye(3, 16))
    rows = tower.eval().base.queries(features())
    changed = tower.raw(features(), query=True) - rows
    assert changed[0, 1].abs() < 0.02 and changed[0, [0, 2]].min() > 0.02  # no weight of what expert 1 adds


def test_a_row_is_what_its_experts_make_of_it_and_an_unknown_text_stays_unknown():
    tower = built(experts=4, chosen=3).eval()
    torch.nn.init.normal_(tower.bias)
    torch.nn.init.normal_(tower.experts)
    rows = tower.base.queries(features())
    gates = top_gates(rows @ tower.gate.T, 3)
    maps = tower.experts.view(4, 16, 16)
    expected = rows + torch.einsum("nk,kij,nj->ni", gates, maps, rows) + gates @ tower.bias
    expected[3] = 0
    assert torch.allclose(tower.raw(features(), query=True), expected, atol=1e-5)
    assert not tower.queries(features())[3].any()


def test_an_expert_that_no_row_chose_gets_no_gradient():
    tower = built(experts=3).eval()
    with torch.no_grad():
        tower.gate_bias[2] = -100.0
    tower.queries(features()).sum().backward()
    assert tower.experts.grad is not None and tower.gate.grad is not None
    parts = tower.experts.grad.view(3, 16, 16)
    assert parts[:2].abs().amax(dim=(1, 2)).min() > 0 and not parts[2].any()
    assert tower.gate.grad[:2].abs().amax(dim=1).min() > 0 and not tower.gate.grad[2].any()


def test_one_expert_for_a_query_teaches_the_gate_nothing_and_is_refused():
    scores = torch.randn(5, 4, requires_grad=True)
    (top_gates(scores, 1) * torch.randn(5, 4)).sum().backward()
    assert scores.grad is not None and not scores.grad.any()
    with pytest.raises(InputError, match=r"tower\.chosen: input should be greater than or equal to 2, got 1"):
        built(chosen=1)


def test_what_cannot_be_is_told():
    with pytest.raises(InputError, match=r"tower\.chosen: 9 of 8 experts"):
        built(chosen=9)
    with pytest.raises(InputError, match=r"tower\.base: 'residual' cannot read what this encoder gives, bag"):
        built(base="residual", base_options={})


def test_the_audit_finds_the_experts_that_are_one():
    tower = built(experts=4)
    torch.nn.init.normal_(tower.experts)
    assert tower.audit().cells == ((0,), (1,), (2,), (3,)) and tower.audit().enough
    assert tower.notes() == ("mixture: 4 experts, all different, 2 of them for each query",)
    with torch.no_grad():  # half of expert 1 each
        tower.experts.view(4, 16, 16)[3] = tower.experts.view(4, 16, 16)[1]
        tower.gate[3] = tower.gate[1]
        tower.gate_bias[[1, 3]] -= math.log(2)
    audit = tower.audit()
    assert audit.cells == ((1, 3), (0,), (2,)) and audit.needed(2) == 3 and not audit.enough
    assert str(audit) == (
        "mixture: of 4 experts 1 and 3 are alike, so that the 2 chosen for a query may be 1 distinct: "
        "set tower.experts to 3, or tower.chosen to 3"
    )
    assert Audit(audit.cells, 4).enough and not Audit(audit.cells, 3).enough


def test_experts_alike_behind_other_gates_are_two():
    maps, gates = torch.tensor([[1.0, 0.0], [1.0, 0.1]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert differences(maps)[0, 1] < 0.01 and differences(gates)[0, 1] == 2
    assert len(Audit.of(torch.maximum(differences(maps), differences(gates)), 2).cells) == 2


def test_a_split_expert_takes_a_larger_k(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from bench_mixture import THREE
    from mixture_density import cells, variation

    for number in range(3):
        fits = {chosen: THREE.split(number, chosen) for chosen in (2, 3)}
        sizes = np.bincount(cells(fits[2], THREE))
        assert sorted(sizes, reverse=True)[: THREE.chosen] == [2, 1]  # 3 are needed
        errors = {chosen: variation(THREE, fit, points=101).mean() for chosen, fit in fits.items()}
        assert errors[2] > 0.04 and errors[2] >= 5 * errors[3]
