"""The simulated queue against what queueing theory knows exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from index.planning.queueing import Service, simulate, stragglers


def fixed(scan: float, **more: object) -> Service:
    return Service(lambda batch: 0.0, lambda batch: scan, lambda batch: 0.0, **more)  # type: ignore[arg-type]


def waits_at_most(x: float, load: float) -> float:
    """P(wait ≤ x) of M/D/1 with service time 1 (Erlang 1909)."""
    terms = (math.exp(load * (x - j)) * (load * (j - x)) ** j / math.factorial(j) for j in range(math.floor(x) + 1))
    return (1 - load) * sum(terms)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_query_at_a_time_waits_as_in_m_d_1(load: float):
    found = simulate(load, 1, fixed(1.0), queries=40_000, most=1, wait_s=0)
    waits = found.latency - 1
    assert waits.mean() == pytest.approx(load / (2 * (1 - load)), rel=0.06)  # Pollaczek and Khinchine
    assert found.busy == pytest.approx(load, rel=0.02)
    for x in (0.25, 1.0, 2.5):
        assert (waits <= x + 1e-9).mean() == pytest.approx(waits_at_most(x, load), abs=0.012)


def test_exponential_service_gives_the_latencies_of_m_m_1():
    found = simulate(
        0.5, 1, fixed(1.0, noise=lambda draw, shards: draw.exponential(size=shards)), queries=40_000, most=1, wait_s=0
    )
    for share in (50, 90, 99):  # of waits that follow each other closely: the last hundredth is few independent ones
        assert found.percentile(share) == pytest.approx(
            -math.log(1 - share / 100) / (1 - 0.5), rel=0.05 if share < 99 else 0.12
        )


def test_a_query_alone_waits_for_the_slowest_of_its_shards():
    """The largest of S exponential times is 1 + 1/2 + … + 1/S on average."""
    found = simulate(1e-4, 20, fixed(1.0, noise=lambda draw, shards: draw.exponential(size=shards)), queries=4000, wait_s=0)
    assert found.latency.mean() == pytest.approx(sum(1 / s for s in range(1, 21)), rel=0.03)


def test_batches_fill_where_one_at_a_time_could_not_keep_up_and_waits_have_a_bound():
    service = Service(lambda batch: 0.001, lambda batch: 0.01, lambda batch: 0.001)
    found = simulate(2000, 4, service, queries=20_000)
    assert found.batch == pytest.approx(2000 * (0.012 + 0.002), rel=0.05)  # what comes while one is answered and 2 ms gathered
    assert found.latency.min() >= 0.012 - 1e-9 and found.latency.max() <= 2 * 0.012 + 0.002 + 1e-9
    full = simulate(10_000, 4, service, queries=20_000)
    assert full.batch > 60 and full.percentile(50) > 0.1  # 64 in 12 ms is all there is


def test_stragglers_decide_and_a_second_row_takes_their_place():
    service = fixed(0.01, noise=stragglers(0.01, 10.0))
    alone = simulate(0.5, 100, service, queries=4000)
    assert (alone.latency > 0.05).mean() == pytest.approx(1 - 0.99**100, abs=0.03)
    hedged = simulate(0.5, 100, service, queries=4000, rows=2, hedge_s=0.012)
    assert hedged.percentile(50) == pytest.approx(0.012 + 0.01, abs=1e-6)
    assert (hedged.latency > 0.05).mean() == pytest.approx(1 - (1 - 1e-4) ** 100, abs=0.01)  # both have to be slow
    assert hedged.hedged == pytest.approx(0.01, rel=0.1)
    with pytest.raises(ValueError, match="a second row"):
        simulate(1, 1, service, hedge_s=0.1)


def test_the_same_seed_is_the_same_run():
    one, other = (simulate(100, 3, fixed(0.004, noise=stragglers(0.1, 3)), queries=500).latency for _ in range(2))
    assert np.array_equal(one, other)
