"""What the scan of an integer copy promises: lists proven, log_z within 1e-4, and few rows read a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dexml.kernels import choose
from dexml.kernels.instructions import has_int16_products
from dexml.kernels.numba_cpu import NumbaKernels
from dexml.kernels.rounding import round_labels, round_queries

pytestmark = pytest.mark.skipif(not has_int16_products(), reason="this CPU has no AVX-512 BW")
T, LABELS, WIDTH = 0.05, 40_000, 96


def rows(count: int, seed: int, width: int = WIDTH) -> torch.Tensor:
    return normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def clustered(centres: int, spread: float) -> torch.Tensor:
    """Every tenth label a near duplicate of the one before, every hundredth an exact one."""
    made = rows(centres, 5)[torch.arange(LABELS) % centres] + spread * rows(LABELS, 6)
    made[10::10] = made[9:-1:10] + 1e-5 * rows(len(made[10::10]), 7)
    made[100::100] = made[99:-1:100]
    return normalize(made, dim=1)


def log_partition(queries: torch.Tensor, labels: torch.Tensor, temperature: float = T) -> torch.Tensor:
    return torch.logsumexp(queries.double() @ labels.double().T / temperature, 1)


@pytest.mark.parametrize(("centres", "spread"), [(20, 0.3), (20, 0.02), (200, 0.3), (1000, 0.05), (10_000, 0.5)])
def test_clustered_labels_are_read_once(centres, spread):
    """Before labels were rounded at random, half of such rows and more fell back to a float32 pass."""
    kernels, labels = NumbaKernels(), clustered(centres, spread)
    queries = normalize(labels[::1000] + 0.5 * rows(40, 8), dim=1)
    answer = kernels.scan(queries, kernels.prepare(labels, "int16"), 100, T)
    assert (log_partition(queries, labels) - answer.log_z).abs().max() <= 1e-4
    assert kernels.scanned == len(queries)
    assert kernels.rescanned <= 1


@pytest.mark.parametrize("make", [torch.randn, torch.rand], ids=["normal", "uniform"])
@pytest.mark.parametrize("bits", [16, 8])
def test_rounding_is_independent_of_labels_made_by_a_seeded_generator(make, bits):
    """Seen: dither from torch's generator with the seed of the labels shrank every label by a part in 10^4."""
    labels = normalize(make(4000, WIDTH, generator=torch.Generator().manual_seed(0)) - 0.3, dim=1)
    copy = round_labels(labels, 1.0, bits)
    steps = torch.from_numpy(copy.steps)[:, None] if bits == 8 else copy.unit
    lost = torch.from_numpy(copy.rows[:4000, :WIDTH].astype(np.float32)) * steps - labels
    # Zero within five standard errors, alone and along the labels.
    assert abs(float(lost.mean())) < 5 * copy.deviation / lost.numel() ** 0.5
    assert abs(float((lost * labels).sum(1).mean())) < 5 * copy.deviation / len(labels) ** 0.5


def test_the_longest_rows_do_not_overflow():
    """A row that lies along its query has the largest sum there can be: 2^31 in steps."""
    width = 4096
    ends = torch.stack([torch.full((width,), width**-0.5), torch.eye(width)[7]])
    labels = torch.cat([ends, rows(2000, 1, width)])
    kernels = choose(backend="numba")
    for copy in ("int16", "int8"):
        answer = kernels.scan(ends, kernels.prepare(labels, copy), 1, T)
        assert answer.ids.tolist() == [[0], [1]]
        assert torch.allclose(answer.scores, torch.ones(2, 1), atol=1e-6)
        assert (log_partition(ends, labels) - answer.log_z).abs().max() <= 1e-4
    assert int(abs(round_queries(ends.numpy()).near).max()) <= 32767


def test_rows_in_doubt_are_read_again():
    """At a temperature far below any training's, rounding decides about e^{s/τ}: every row is scanned in float32."""
    kernels, labels = NumbaKernels(), clustered(20, 0.02)
    queries = rows(6, 3)
    answer = kernels.scan(queries, kernels.prepare(labels, "int16"), 10, 1e-4)
    assert kernels.rescanned == len(queries)
    expected = log_partition(queries, labels, 1e-4)
    assert (expected - answer.log_z).abs().max() <= 1e-6 * expected.abs().max()


def test_an_int8_copy_that_fails_waits_longer_each_time():
    kernels, labels = NumbaKernels(), clustered(20, 0.02)
    prepared = kernels.prepare(labels, "int8")
    patience, query = prepared.private["patience"], rows(1, 9)
    waits = []
    for _ in range(12):
        answer = kernels.scan(query, prepared, 10, 0.02)
        assert abs(float(log_partition(query, labels, 0.02) - answer.log_z)) <= 1e-4
        waits.append(patience.failures)
    assert waits == [1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3]
    easy = kernels.prepare(rows(300_000, 1), "int8")
    kernels.scan(rows(1, 2), easy, 10, 0.2)
    assert easy.private["patience"].failures == 0


def test_huge_pages_change_no_number():
    """The largest matrices move; small ones and memory mapped from a file do not."""
    from dexml.kernels.pages import LARGE, on_huge_pages

    large = torch.arange(LARGE // 4 + 5, dtype=torch.float32)
    on_huge_pages(large)
    assert torch.equal(large, torch.arange(LARGE // 4 + 5, dtype=torch.float32))
    assert not on_huge_pages(torch.ones(100))
