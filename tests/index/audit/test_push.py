"""Ordered lists: returned exactly where that is possible, and refuted where it is not, as a linear programme says as well."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from index.audit import MARGIN, boundaries, pushes
from index.exact import ExactIndex
from index.live import LiveIndex


def unit(count: int, dimension: int, seed: int) -> torch.Tensor:
    rows = torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def index_of(rows: torch.Tensor) -> LiveIndex:
    index = ExactIndex(scan_copy="none")
    index.build(rows)
    return LiveIndex(index, rows, index.kernels)


def lists(count: int, labels: int, k: int) -> np.ndarray:
    random = np.random.default_rng(k)
    return np.stack([random.choice(labels, k, replace=False) for _ in range(count)]).astype(np.int64)


def differences(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    rest = np.setdiff1d(np.arange(len(rows)), target)
    return np.vstack([rows[target[:-1]] - rows[target[1:]], rows[target[-1]] - rows[rest]])


def largest_margin(matrix: np.ndarray) -> float:
    """max t, G z ≥ t, |z_i| ≤ 1: at least the margin of any unit z, and 0 where none has one."""
    cost = np.append(np.zeros(matrix.shape[1]), -1.0)
    bounds = [*[(-1, 1)] * matrix.shape[1], (0, 1)]
    wide = np.hstack([-matrix, np.ones((len(matrix), 1))])
    found = linprog(cost, A_ub=wide, b_ub=np.zeros(len(matrix)), bounds=bounds)
    assert found.status == 0, found.message
    return -found.fun


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize("margin", [MARGIN, 1e-2])
def test_every_feasible_list_is_returned_exactly(k: int, margin: float):
    rows = unit(1000, 128, 0)
    index, targets = index_of(rows), lists(100, 1000, k)
    found = pushes(index, unit(100, 128, 1), targets, margin)
    assert all(push.reachable for push in found), "random labels in 128 dimensions: any ten can be first"
    scores = torch.stack([push.row for push in found]).double() @ rows.double().T
    best = scores.topk(k + 1)
    assert np.array_equal(best.indices[:, :k].numpy(), targets)
    assert float(-best.values.diff(dim=1).max()) >= 0.99 * margin
    asked = index.search(torch.stack([push.row for push in found]), k, 1.0)
    assert np.array_equal(asked.ids.numpy(), targets), "and by the index in float32"


@pytest.mark.parametrize(("labels", "dimension"), [(60, 6), (200, 16)])
def test_reachability_and_its_certificates_agree_with_a_linear_programme(labels: int, dimension: int):
    rows = unit(labels, dimension, 0)
    index, wide, verdicts = index_of(rows), rows.double().numpy(), []
    for k in (2, 3, 5):
        targets = lists(20, labels, k)
        for push in pushes(index, unit(20, dimension, k), targets):
            assert push.reachable is bool(largest_margin(differences(wide, push.target)) > MARGIN / 2)
            if push.certificate is not None:
                assert push.certificate.holds(wide, 1e-9)
                assert not replace(push.certificate, weights=np.roll(push.certificate.weights, 1)).holds(wide, 1e-9)
            verdicts.append(push.reachable)
    assert 5 < sum(verdicts) < len(verdicts) - 5, "both verdicts occur"


def test_the_push_is_the_smallest():
    rows, queries = unit(40, 8, 0), unit(12, 8, 1)
    targets = lists(12, 40, 2)
    for query, push in zip(queries.double().numpy(), pushes(index_of(rows), queries, targets), strict=True):
        if not push.reachable or push.angle > 85:
            continue
        matrix = differences(rows.double().numpy(), push.target)
        kept = {"type": "ineq", "fun": lambda z, matrix=matrix: matrix @ z - MARGIN * np.linalg.norm(z)}
        start = push.row.double().numpy()
        other = minimize(lambda z, query=query: ((z - query) ** 2).sum(), start, constraints=kept, method="SLSQP").x
        cosine = other @ query / np.linalg.norm(other)
        assert push.angle == pytest.approx(math.degrees(math.acos(cosine)), abs=0.01)


def test_a_margin_beyond_the_largest_is_refuted_with_the_largest():
    rows = unit(1000, 128, 0)
    index, target = index_of(rows), lists(1, 1000, 20)
    query = unit(1, 128, 1)
    refuted = pushes(index, query, target, 0.01)[0]
    assert refuted.reachable is False and refuted.certificate.holds(rows.double().numpy(), 0.01)
    assert pushes(index, query, target, 0.5 * refuted.certificate.bound)[0].reachable
    assert math.isnan(refuted.angle) and refuted.row is None


def test_labels_with_one_row_have_no_order():
    rows = unit(30, 16, 0)
    rows[7] = rows[3]
    index, query = index_of(rows), unit(1, 16, 1)
    push = pushes(index, query, np.array([[3, 7]]))[0]
    assert push.reachable is False and push.certificate.bound == 0
    assert {push.certificate.better[0], push.certificate.worse[0]} == {3, 7}
    assert pushes(index, query, np.array([[3]]))[0].reachable is False, "nor is one of them alone the first"


def test_lists_of_all_labels_and_what_is_no_list():
    index = index_of(unit(3, 8, 0))
    assert pushes(index, unit(1, 8, 1), np.array([[2, 0, 1]]))[0].reachable
    alone = pushes(index_of(unit(1, 8, 0)), unit(1, 8, 1), np.array([[0]]))[0]
    assert alone.reachable and alone.angle == pytest.approx(0, abs=1e-4)
    with pytest.raises(ValueError, match="names each label once"):
        pushes(index, unit(1, 8, 1), np.array([[2, 2]]))
    with pytest.raises(ValueError, match="length above 0"):
        pushes(index, torch.zeros(1, 8), np.array([[2]]))
    assert pushes(index, torch.zeros(0, 8), np.zeros((0, 2), dtype=np.int64)) == []


def test_boundaries_are_the_first_change_of_an_answer():
    rows, queries, k = unit(300, 12, 0), unit(20, 12, 1), 4
    index = index_of(rows)
    orders, sets = boundaries(index, queries, k)
    for query, order, entry in zip(queries.double(), orders, sets, strict=True):
        before = (rows.double() @ query).topk(k).indices.tolist()
        for bound, same in ((order, list), (entry, set)):
            difference = rows[bound.rises].double() - rows[bound.falls].double()
            away = difference / difference.norm()
            flat = query - (query @ away) * away
            for turn, changed in ((-0.01, False), (0.01, True)):
                angle = math.radians(turn)
                turned = math.cos(angle) * flat / flat.norm() + math.sin(angle) * away
                after = (rows.double() @ turned).topk(k).indices.tolist()
                assert (same(before) != same(after)) is changed
        assert order.angle <= entry.angle and entry.rises not in before and entry.falls in before


def test_boundaries_look_as_far_down_as_they_must(monkeypatch: pytest.MonkeyPatch):
    rows, queries = unit(500, 64, 0), unit(5, 64, 1)
    whole = boundaries(index_of(rows), queries, 3)
    monkeypatch.setattr("index.audit.fragility.AHEAD", 1)
    assert boundaries(index_of(rows), queries, 3) == whole
    with pytest.raises(ValueError, match="k must be from 1 to 499"):
        boundaries(index_of(rows), queries, 500)


def test_the_nearest_swap_is_what_the_programme_finds():
    rows, queries = unit(200, 32, 0), unit(10, 32, 1)
    index = index_of(rows)
    orders, _ = boundaries(index, queries, 1)
    taken = np.array([[bound.rises] for bound in orders])
    for bound, push in zip(orders, pushes(index, queries, taken), strict=True):
        assert push.angle == pytest.approx(bound.angle, abs=0.01), "the first boundary is crossed where it is met"
