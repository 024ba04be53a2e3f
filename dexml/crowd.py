"""Several annotators' answers made one: the most probable label, the most confusing one, and how likely each is.

The Top-Two model (Jeong and Chung, "Recovering Top-Two Answers and Confusion Probability in Multi-Choice Crowdsourcing").
Item j has a true label g_j and a confusing one h_j. Worker i, with probability p_i, answers one of the two: g_j with
probability q_j > ½, else h_j; otherwise any of the K labels. Spectral estimates come first, the most likely pair under them
second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from dexml.errors import InputError
from dexml.positives import Int64Array, Positives

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TopTwo:
    """Of M items the `first` and `second` label, int64 (M), and the first's probability q of the two, float64 (M), in (½, 1).

    `reliability` float64 (N) is the probability that a worker knows of an item's two labels, in (0, 1).
    """

    first: Int64Array
    second: Int64Array
    probability: Float64Array
    reliability: Float64Array

    def positives(self, num_labels: int) -> Positives:
        """Return both labels of each item (M, `num_labels`) as soft positives, weighted by their probabilities."""
        pairs = np.stack([self.first, self.second], axis=1)
        weights = np.stack([self.probability, 1 - self.probability], axis=1).astype(np.float32)
        order = np.argsort(pairs, axis=1)
        ends = np.arange(0, 2 * len(pairs) + 1, 2, dtype=np.int64)
        indices = np.take_along_axis(pairs, order, axis=1).ravel()
        return Positives(ends, indices, num_labels, np.take_along_axis(weights, order, axis=1).ravel())


def top_two(answers: Int64Array, labels: int) -> TopTwo:
    """Return the two labels of each item of `answers` (N workers, M items), numbered from 0, −1 where there is none.

    Raises InputError with fewer than three labels, where a confusing one is no news, and for a worker or item without answers.
    """
    if labels < 3:
        raise InputError(f"crowd: {labels} labels; two of them are told apart from the rest, so at least 3 are needed")
    if answers.size == 0 or answers.min() < -1 or answers.max() >= labels:
        raise InputError(f"crowd: answers must be label numbers in [0, {labels}), or -1 where there is none")
    given = answers >= 0
    if not (given.any(axis=0).all() and given.any(axis=1).all()):
        raise InputError("crowd: every worker and every item needs an answer")
    fall = _fall(answers, given, labels)
    order = np.argsort(fall, axis=1, kind="stable")
    first, second = order[:, 0], order[:, 1]
    right = ((answers == first) | (answers == second)).sum(axis=1) / given.sum(axis=1)
    reliability = np.clip((right - 2 / labels) / (1 - 2 / labels), 0.001, 0.999)
    depth = fall[np.arange(len(first)), first]
    probability = np.clip(1 / labels - depth / np.linalg.norm(reliability), 0.501, 0.999)
    odds = labels * reliability / (1 - reliability)
    one, other = (_votes(answers, labels, odds, part) for part in (probability, 1 - probability))
    first, second = _best_pair(one, other)
    return TopTwo(first, second, _expected(answers, first, second, reliability, labels), reliability)


def _fall(answers: Int64Array, given: npt.NDArray[np.bool_], labels: int) -> Float64Array:
    """Return for each item and label (M, K) what is lowest for the true label and next for the confusing one: stage one.

    With k = 1 … K−1, whether an answer lies above k is a matrix of rank one around its mean: reliabilities times a step of the
    item's, which falls where k passes one of its two labels.
    """
    seen = float(given.mean())
    steps, vectors = [], []
    for k in range(1, labels):
        sides = np.where(given, np.where(answers >= k, 1.0, -1.0), 0.0) - seen * (labels - 2 * k) / labels
        workers = len(sides)
        _, vector = eigh(sides @ sides.T, subset_by_index=(workers - 1, workers - 1))
        vectors.append(vector[:, 0] * (1 if vector.sum() >= 0 else -1))
        steps.append(sides)
    of_workers = np.clip(np.mean(vectors, axis=0), 0, 1)
    heights = [sides.T @ of_workers / (2 * seen) for sides in steps]
    nothing = np.zeros(answers.shape[1])
    return np.diff(np.stack([nothing, *heights, nothing], axis=1), axis=1)


def _votes(answers: Int64Array, labels: int, odds: Float64Array, share: Float64Array) -> Float64Array:
    """Return the log-likelihood of each label (M, K), if an item's `share` (M) of the reliable answers is its: stage two."""
    votes = np.log1p(odds[:, None] * share)
    items = answers.shape[1]
    places = np.arange(items) * labels + answers
    given = answers >= 0
    sums: Float64Array = np.bincount(places[given], weights=votes[given], minlength=items * labels)  # type: ignore[assignment]
    return sums.reshape(items, labels)


def _expected(
    answers: Int64Array, first: Int64Array, second: Int64Array, reliability: Float64Array, labels: int
) -> Float64Array:
    """Return the mean of each item's q under its answers, all of (½, 1) being as likely before them (M).

    The spectral estimate of stage one is good enough to weigh votes by, but of a dozen answers to an item no better than their
    shares; the likelihood knows in addition whose answers they are.
    """
    q = np.linspace(0.5, 1, 101)[1:-1]
    by_chance = ((1 - reliability) / labels)[:, None]
    log = np.zeros((len(first), len(q)))
    for of, share in ((first, q), (second, 1 - q)):
        log += (answers == of).T @ np.log(reliability[:, None] * share + by_chance)
    likely = np.exp(log - log.max(axis=1, keepdims=True))
    return np.asarray(likely @ q / likely.sum(axis=1))


def _best_pair(one: Float64Array, other: Float64Array) -> tuple[Int64Array, Int64Array]:
    """Return two different labels with the greatest sum one[a] + other[b]: each is among the two best of its kind."""
    firsts, seconds = (np.argsort(-votes, axis=1, kind="stable")[:, :2] for votes in (one, other))
    a = np.repeat(firsts, 2, axis=1)
    b = np.tile(seconds, 2)
    sums = np.take_along_axis(one, a, axis=1) + np.take_along_axis(other, b, axis=1)
    best = np.where(a == b, -np.inf, sums).argmax(axis=1)[:, None]
    return np.take_along_axis(a, best, axis=1)[:, 0], np.take_along_axis(b, best, axis=1)[:, 0]
