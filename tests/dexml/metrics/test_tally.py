"""All figures of sparse predictions against METHODS §4 written out in plain Python floats, and against pyxclib where it is.

pyxclib is in no registry; where `xclib` can be imported, the 100 problems are put to it as well.
"""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise, product

import numpy as np
import pytest
import scipy.sparse as sp

from dexml import metrics
from dexml.positives import Positives

CUTOFFS = (1, 3, 5, 10)


def problem(seed: int, rows: int = 40, labels: int = 60) -> tuple[sp.csr_array, Positives, np.ndarray, Positives]:
    """Return scores with ties, stored zeros and negative values, rows of 0 to 12 predictions, truth with empty rows."""
    random = np.random.default_rng(seed)
    few = [random.choice(labels, random.integers(0, 13), replace=False) for _ in range(rows)]
    scores = [random.integers(-2, 3, len(row)) / 2 for row in few]
    ends = np.concatenate([[0], np.cumsum([len(row) for row in few])])
    given = sp.csr_array((np.concatenate(scores), np.concatenate(few), ends), shape=(rows, labels))
    true = [random.choice(labels, random.integers(0, 8), replace=False).tolist() for _ in range(rows)]
    true = [[*row, *some[:2].tolist()] if row else row for row, some in zip(true, few, strict=True)]
    gone = [row[:1].tolist() if random.random() < 0.3 else [] for row in few]
    counts = random.integers(0, 40, labels).astype(np.int64)
    weights = metrics.propensity_weights(counts, 100, 0.55, 1.5)
    return given, Positives.from_rows(true, labels), weights, Positives.from_rows(gone, labels)


def ideal(m: int) -> float:
    return math.fsum(1 / math.log2(r + 1) for r in range(1, m + 1)) or 1.0


def by_hand(given: sp.csr_array, truth: Positives, weights: np.ndarray, gone: Positives | None) -> dict[str, float]:
    """Return every figure, row by row from its definition."""
    sums: dict[str, list[float]] = {}
    possible: dict[str, list[float]] = {}
    answered: dict[tuple[int, int], list[int]] = {}
    right: dict[tuple[int, int], list[int]] = {}
    for row, k in product(range(len(truth)), CUTOFFS):
        pairs = zip(
            given.indices[given.indptr[row] : given.indptr[row + 1]].tolist(),
            given.data[given.indptr[row] : given.indptr[row + 1]].tolist(),
            strict=True,
        )
        left = [pair for pair in pairs if gone is None or pair[0] not in gone.row(row)]
        ranked = [label for label, _ in sorted(left, key=lambda pair: (-pair[1], pair[0]))][:k]
        true = truth.row(row).tolist()
        found = [label in true for label in ranked]
        best = sorted((weights[label] for label in true), reverse=True)[:k]
        n, z = max(len(true), 1), ideal(min(k, len(true)))
        hits = [rank for rank, hit in enumerate(found, 1) if hit]
        means = {
            "P": len(hits) / k,
            "R": len(hits) / n,
            "nDCG": math.fsum(1 / math.log2(rank + 1) for rank in hits) / z,
            "hits": float(bool(hits)),
            "MRR": 1 / hits[0] if hits else 0.0,
            "MAP": math.fsum(place / rank for place, rank in enumerate(hits, 1)) / min(k, n),
        }
        earned = [weights[ranked[rank - 1]] for rank in hits]
        ratios = {
            "PSP": (math.fsum(earned) / k, math.fsum(best) / k),
            "PSnDCG": (
                math.fsum(w / math.log2(rank + 1) for w, rank in zip(earned, hits, strict=True)) / z,
                math.fsum(w / math.log2(rank + 1) for rank, w in enumerate(best, 1)) / z,
            ),
            "PSR": (math.fsum(earned) / n, math.fsum(best) / n),
        }
        for name, (gain, could) in {**{name: (value, 1.0) for name, value in means.items()}, **ratios}.items():
            sums.setdefault(f"{name}@{k}", []).append(gain)
            possible.setdefault(f"{name}@{k}", []).append(could)
        for label, hit in zip(ranked, found, strict=True):
            answered.setdefault((k, label), []).append(row)
            if hit:
                right.setdefault((k, label), []).append(row)
    figures = {name: 100 * math.fsum(values) / math.fsum(possible[name]) for name, values in sums.items()}
    true_of = {label: int(count) for label, count in enumerate(truth.counts()) if count}
    for k in CUTOFFS:
        of = {label: (len(right.get((k, label), [])), len(answered.get((k, label), []))) for label in true_of}
        figures[f"coverage@{k}"] = 100 * sum(hit > 0 for hit, _ in of.values()) / len(of)
        figures[f"macroP@{k}"] = 100 * math.fsum(hit / max(said, 1) for hit, said in of.values()) / len(of)
        figures[f"macroR@{k}"] = 100 * math.fsum(hit / true_of[label] for label, (hit, _) in of.items()) / len(of)
        figures[f"macroF1@{k}"] = (
            100 * math.fsum(2 * hit / (said + true_of[label]) for label, (hit, said) in of.items()) / len(of)
        )
    return figures


@pytest.mark.parametrize("seed", range(100))
def test_all_figures_equal_their_definitions(seed):
    given, truth, weights, gone = problem(seed)
    excluded = gone if seed % 2 else None
    got = metrics.measure(given, truth, weights, CUTOFFS, excluded=excluded).figures()
    assert got == pytest.approx(by_hand(given, truth, weights, excluded), abs=1e-8)


@pytest.mark.parametrize("seed", range(100))
def test_figures_equal_those_of_pyxclib(seed):
    xclib = pytest.importorskip("xclib.evaluation.xc_metrics", reason="pyxclib is not here")
    given, truth, weights, _ = problem(seed)
    # pyxclib leaves the order of ties to an unstable sort, so it is told the order: ranks instead of scores.
    strict = metrics.predictions(given).copy()
    for row in range(strict.shape[0]):
        part = slice(strict.indptr[row], strict.indptr[row + 1])
        order = np.argsort(-strict.data[part], kind="stable")
        strict.data[part][order] = -np.arange(len(order), dtype=np.float64)
    true = sp.csr_matrix(truth.matrix()).astype(np.float64)
    k = CUTOFFS[-1]
    got = metrics.measure(given, truth, weights, range(1, k + 1)).figures()
    for name, function in {"P": "precision", "R": "recall", "nDCG": "ndcg", "hits": "hits"}.items():
        theirs = getattr(xclib, function)(sp.csr_matrix(strict), true, k=k)
        assert [got[f"{name}@{place}"] / 100 for place in range(1, k + 1)] == pytest.approx(theirs, abs=1e-6)
    for name, function in {"PSP": "psprecision", "PSR": "psrecall", "PSnDCG": "psndcg"}.items():
        theirs = getattr(xclib, function)(sp.csr_matrix(strict), true, weights, k=k)
        assert [got[f"{name}@{place}"] / 100 for place in range(1, k + 1)] == pytest.approx(theirs, abs=1e-6)


def test_blocks_in_any_order_give_the_whole_to_the_last_bit():
    parts = [problem(seed) for seed in range(12)]
    weights = parts[0][2]
    whole = metrics.Tally(60, weights)
    backwards = metrics.Tally(60, weights)
    for given, truth, _, _ in parts:
        whole.add(metrics.top(given, 100), truth)
    for given, truth, _, _ in reversed(parts):
        ranked = metrics.top(given, 100)
        one = metrics.Tally(60, weights)
        one.add(ranked[25:], truth.take(np.arange(25, 40)))
        one.add(ranked[:25], truth.take(np.arange(25)))
        backwards.merge(one)
    assert whole.figures() == backwards.figures() and whole.rows == backwards.rows == 480
    assert np.array_equal(whole.hits, backwards.hits) and np.array_equal(whole.answers, backwards.answers)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(threads):
    given, truth, weights, gone = problem(7, rows=9000, labels=300)
    one = metrics.measure(given, truth, weights, excluded=gone, threads=1)
    seen: list[int] = []
    some = metrics.measure(given, truth, weights, excluded=gone, threads=threads, report=seen.append)
    assert one.figures() == some.figures() and some.rows == sum(seen) == 9000


def test_ranked_rows_and_sparse_scores_are_measured_alike():
    given, truth, weights, gone = problem(3)
    ranked = metrics.top(given, 60)
    for excluded in (None, gone):
        assert (
            metrics.measure(ranked, truth, weights, excluded=excluded).figures()
            == metrics.measure(given, truth, weights, excluded=excluded).figures()
        )


def test_zeros_and_negative_scores_are_predictions_and_ties_go_by_number():
    given = sp.csr_array((np.array([0.0, -1.0, 0.0, -np.inf]), np.array([5, 1, 2, 0]), np.array([0, 4])), shape=(1, 7))
    assert metrics.top(given, 6).tolist() == [[2, 5, 1, 0, -1, -1]]
    assert metrics.top(given, 6, Positives.from_rows([[2, 1]], 7)).tolist() == [[5, 0, -1, -1, -1, -1]]
    doubled = sp.csr_array((np.array([1.0, 2.0, 2.5]), np.array([3, 3, 0]), np.array([0, 3])), shape=(1, 7))
    assert metrics.top(doubled, 2).tolist() == [[3, 0]], "doubles are summed, as everywhere in scipy"
    assert doubled.nnz == 3, "the caller's matrix is left alone"


def test_single_figures_are_those_of_a_tally():
    given, truth, weights, gone = problem(11)
    for excluded in (None, gone):
        all_of_them = metrics.measure(given, truth, weights, (5,), excluded=excluded).figures()
        plain = {
            "P": metrics.precision_at,
            "R": metrics.recall_at,
            "nDCG": metrics.ndcg_at,
            "hits": metrics.hit_rate_at,
            "MRR": metrics.reciprocal_rank_at,
            "MAP": metrics.average_precision_at,
            "coverage": metrics.coverage_at,
            "macroP": metrics.macro_precision_at,
            "macroR": metrics.macro_recall_at,
            "macroF1": metrics.macro_f1_at,
        }
        weighted = {
            "PSP": metrics.propensity_precision_at,
            "PSnDCG": metrics.propensity_ndcg_at,
            "PSR": metrics.propensity_recall_at,
        }
        matrix = truth.matrix()
        got = {f"{name}@5": figure(given, matrix, 5, excluded) for name, figure in plain.items()}
        got |= {f"{name}@5": figure(given, truth, weights, 5, excluded) for name, figure in weighted.items()}
        assert got == pytest.approx(all_of_them, abs=1e-8)


def test_groups_hold_every_label_once_and_their_parts_add_up_to_precision():
    given, truth, weights, _ = problem(5, rows=400)
    counts = np.random.default_rng(0).integers(0, 200, 60).astype(np.int64)
    tally = metrics.measure(given, truth, weights)
    figures = tally.figures()
    for groups in (metrics.deciles(tally, counts), metrics.bands(tally, counts)):
        assert sum(group.labels for group in groups) == 60 and sum(group.true for group in groups) == len(truth.indices)
        for k in tally.cutoffs:
            assert sum(group.part[k] for group in groups) == pytest.approx(figures[f"P@{k}"])
            found = sum(group.recall[k] * group.true for group in groups) / len(truth.indices)
            assert found == pytest.approx(100 * tally.hits[tally.cutoffs.index(k)].sum() / len(truth.indices))
    deciles = metrics.deciles(tally, counts)
    assert len(deciles) == 10 and all(a.seen[0] >= b.seen[1] for a, b in pairwise(deciles))
    head, torso, tail = metrics.bands(tally, counts)
    assert head.seen[0] >= 100 > torso.seen[1] and torso.seen[0] >= 10 > tail.seen[1]


def test_a_group_without_labels_is_nothing_and_no_error():
    tally = metrics.measure(np.array([[0, 1]]), Positives.from_rows([[1]], 3), None)
    head, _, tail = metrics.bands(tally, np.array([1, 2, 3]))
    assert (head.labels, head.seen, head.recall[5]) == (0, (0, 0), 0.0)
    assert (tail.labels, tail.seen, tail.recall[1], tail.recall[3]) == (3, (1, 3), 0.0, 100.0)


def test_memory_is_that_of_the_blocks():
    rows, labels = 30_000, 1000
    random = np.random.default_rng(0)
    indices = np.sort(random.integers(0, 900, (rows, 100), dtype=np.int32), axis=1) + np.arange(100, dtype=np.int32)
    given = sp.csr_array(
        (random.random(indices.size, dtype=np.float32), indices.ravel(), np.arange(0, indices.size + 1, 100)), (rows, labels)
    )
    truth = Positives.from_rows([[row % labels] for row in range(rows)], labels)
    metrics.measure(given, truth, None, threads=1)
    tracemalloc.start()
    metrics.measure(given, truth, None, threads=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 90e6, "as much as 8 arrays (4096, 100) of float64 and a few more, not (30000, 100)"


def test_propensity_constants_go_by_the_exact_name():
    assert metrics.propensity_constants("LF-Amazon-131K") == (0.6, 2.6)
    assert metrics.propensity_constants("AmazonCat-13K") == metrics.propensity_constants("Wiki10-31K") == (0.55, 1.5)
    assert metrics.propensity_constants("Wikipedia-500K") == (0.5, 0.4)
    with pytest.raises(ValueError, match="unknown data set 'my-Amazon'"):
        metrics.propensity_constants("my-Amazon")


def test_what_does_not_fit_is_told():
    given, truth, weights, gone = problem(0)
    with pytest.raises(ValueError, match="scores of shape"):
        metrics.measure(given[:5], truth)
    with pytest.raises(ValueError, match="a score is NaN"):
        metrics.measure(sp.csr_array(given * np.nan), truth)
    with pytest.raises(ValueError, match="weights"):
        metrics.measure(given, truth, weights[:3])
    with pytest.raises(ValueError, match="cutoffs must ascend"):
        metrics.measure(given, truth, None, (5, 3))
    with pytest.raises(ValueError, match="excluded pairs of shape"):
        metrics.measure(given, truth, excluded=gone.take(np.arange(3)))
    with pytest.raises(ValueError, match="different figures"):
        metrics.Tally(3).merge(metrics.Tally(4))


def test_the_import_is_light():
    import subprocess
    import sys

    code = "import sys; from dexml.metrics import precision_at; print({'torch', 'numba', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
