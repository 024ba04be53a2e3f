"""The graph that made the data is found again, by a loss that falls in every round, from random and from bad orders."""

from __future__ import annotations

import numpy as np
import pytest

from dexml.analysis.dags import levels, simulated, structural_distance, thresholded, varsortability
from dexml.analysis.topo import Logistic, Squared, topo


@pytest.mark.parametrize("degree", [2, 4])
def test_a_graph_of_twenty_nodes_is_found_again(degree: int):
    for seed in range(3):
        generator = np.random.default_rng(seed)
        weights, data = simulated(20, degree, 1000, generator)
        found = topo(Squared(data), generator.permutation(20).astype(np.int64))
        assert found.finished and structural_distance(weights, thresholded(found.weights, 0.3)) <= 2
        assert (np.diff(found.losses) < 0).all()
        place = np.argsort(found.order)
        assert all(place[one] < place[other] for one, other in np.argwhere(found.weights != 0)), "edges follow the order"


def test_a_bad_order_is_bettered_each_time():
    for seed in range(10):
        _, data = simulated(12, 2, 400, np.random.default_rng(seed))
        by_variance = np.argsort(-data.var(axis=0)).astype(np.int64)
        found = topo(Squared(data), by_variance)
        assert found.losses[-1] < found.losses[0]
        assert (np.diff(found.losses) < 0).all()


def test_what_is_found_rests_on_the_scale_of_the_columns():
    weights, data = simulated(20, 4, 1000, np.random.default_rng(0))
    scaled = (data - data.mean(axis=0)) / data.std(axis=0)
    start = np.arange(20, dtype=np.int64)
    assert structural_distance(weights, thresholded(topo(Squared(data), start).weights, 0.3)) <= 2
    assert structural_distance(weights, thresholded(topo(Squared(scaled), start).weights, 0.3)) > 20
    assert varsortability(weights, data.var(axis=0)) > 0.9
    assert varsortability(weights, np.ones(20)) == 0.5


def test_squared_losses_of_swaps_and_weights_are_those_of_the_regressions():
    _, data = simulated(8, 2, 300, np.random.default_rng(1))
    order = np.random.default_rng(2).permutation(8).astype(np.int64)
    loss = Squared(data)
    loss.start(order)
    weights, swapped = loss.weights(), loss.swapped(2, 6)
    centred = data - data.mean(axis=0)
    for place, node in enumerate(order):
        fitted = np.linalg.lstsq(centred[:, order[:place]], centred[:, node], rcond=None)[0]
        assert weights[order[:place], node] == pytest.approx(fitted, abs=1e-6)
    order[[2, 6]] = order[[6, 2]]
    assert swapped == pytest.approx(Squared(data).start(order)[2:7].sum())


def test_logistic_regressions_end_where_the_gradient_does_and_the_search_falls():
    generator = np.random.default_rng(0)
    data = np.zeros((500, 5))
    data[:, 0] = generator.random(500) < 0.3
    for node in range(1, 5):
        data[:, node] = generator.random(500) < np.where(data[:, node - 1] > 0, 0.8, 0.05)
    loss = Logistic(data)
    found = topo(loss, np.array([4, 2, 0, 3, 1]))
    assert (np.diff(found.losses) < 0).all() and len(found.losses) > 1
    gradient = loss.gradient(found.weights)
    place = np.argsort(found.order)
    assert max(abs(gradient[one, other]) for one in range(5) for other in range(5) if place[one] < place[other]) < 1e-4
    strong = np.abs(thresholded(found.weights, 1.0)) > 0
    assert {frozenset(edge) for edge in np.argwhere(strong).tolist()} == {frozenset((node, node + 1)) for node in range(4)}


def test_a_search_that_is_stopped_has_an_order():
    _, data = simulated(10, 2, 200, np.random.default_rng(0))
    found = topo(Squared(data), np.arange(10)[::-1].astype(np.int64), lambda rounds, value: rounds == 1)
    assert not found.finished and len(found.losses) == 2


def test_distances_and_levels_of_graphs():
    chain = np.diag(np.ones(3), 1)
    assert structural_distance(chain, chain) == 0
    assert structural_distance(chain, chain.T) == 3, "an edge turned round counts once"
    assert structural_distance(chain, np.zeros((4, 4))) == 3
    more = chain.copy()
    more[0, 3] = 1
    assert structural_distance(chain, more) == 1
    assert levels(more, np.arange(4)).tolist() == [0, 1, 2, 3]
    assert np.isnan(varsortability(np.zeros((3, 3)), np.ones(3)))
