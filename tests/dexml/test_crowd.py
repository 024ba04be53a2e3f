"""Two labels of each item recovered from simulated workers, against majority vote and Dawid–Skene, as in the model's paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from dexml.crowd import top_two
from dexml.errors import InputError

K = 5


@dataclass(frozen=True)
class Crowd:
    answers: np.ndarray
    first: np.ndarray
    second: np.ndarray
    p: np.ndarray
    q: np.ndarray


def simulate(seed: int, workers: int = 50, items: int = 500, seen: float = 1.0) -> Crowd:
    """Draw workers of every reliability and items of every difficulty, each answer there with probability `seen`."""
    random = np.random.default_rng(seed)
    p, q = random.uniform(0, 1, workers), random.uniform(0.5, 1, items)
    first = random.integers(0, K, items)
    second = (first + random.integers(1, K, items)) % K
    knows = random.random((workers, items)) < p[:, None]
    of_two = np.where(random.random((workers, items)) < q, first, second)
    answers = np.where(knows, of_two, random.integers(0, K, (workers, items)))
    answers[random.random((workers, items)) >= seen] = -1
    return Crowd(answers.astype(np.int64), first, second, p, q)


def two_best(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(-scores, axis=1, kind="stable")
    top, next_ = (np.take_along_axis(scores, order[:, place : place + 1], axis=1)[:, 0] for place in (0, 1))
    return order[:, 0], order[:, 1], top / (top + next_)


def votes(answers: np.ndarray) -> np.ndarray:
    return np.stack([(answers == label).sum(axis=0) for label in range(K)], axis=1).astype(float)


def majority(answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two labels with most votes, and the first's share of theirs."""
    return two_best(votes(answers))


def dawid_skene(answers: np.ndarray, rounds: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two most probable labels under a confusion matrix per worker, fitted by EM from the votes."""
    said = np.stack([answers == label for label in range(K)], axis=2).astype(float)  # (N, M, K)
    belief = votes(answers) / votes(answers).sum(axis=1, keepdims=True)
    for _ in range(rounds):
        confusion = np.einsum("mt,nms->nts", belief, said) + 0.01
        confusion /= confusion.sum(axis=2, keepdims=True)
        log = np.einsum("nms,nts->mt", said, np.log(confusion)) + np.log(belief.mean(axis=0) + 1e-12)
        belief = np.exp(log - log.max(axis=1, keepdims=True))
        belief /= belief.sum(axis=1, keepdims=True)
    return two_best(belief + 1e-12 * votes(answers))


def oracle(crowd: Crowd) -> tuple[np.ndarray, np.ndarray]:
    """Return the most likely pairs for who knows every p and q."""
    odds = K * crowd.p / (1 - crowd.p)
    scores = []
    for share in (crowd.q, 1 - crowd.q):
        weight = np.log1p(odds[:, None] * share)
        scores.append(np.stack([np.where(crowd.answers == label, weight, 0).sum(axis=0) for label in range(K)], axis=1))
    both = scores[0][:, :, None] + scores[1][:, None, :]
    both[:, np.arange(K), np.arange(K)] = -np.inf
    best = both.reshape(len(both), -1).argmax(axis=1)
    return best // K, best % K


def pair_wrong(crowd: Crowd, first: np.ndarray, second: np.ndarray) -> float:
    return float(((first != crowd.first) | (second != crowd.second)).mean())


@pytest.mark.parametrize("seen", [0.3, 0.6, 1.0])
def test_pairs_and_confusion_are_recovered_better_than_by_votes_and_dawid_skene(seen):
    wrong = {name: [] for name in ("top two", "votes", "dawid-skene", "oracle")}
    off = {name: [] for name in ("top two", "votes", "dawid-skene")}
    for seed in range(3):
        crowd = simulate(seed, seen=seen)
        ours = top_two(crowd.answers, K)
        guesses = {
            "top two": (ours.first, ours.second, ours.probability),
            "votes": majority(crowd.answers),
            "dawid-skene": dawid_skene(crowd.answers),
        }
        for name, (first, second, probability) in guesses.items():
            wrong[name].append(pair_wrong(crowd, first, second))
            off[name].append(float(np.abs(crowd.q - probability).mean()))
        wrong["oracle"].append(pair_wrong(crowd, *oracle(crowd)))
        assert np.corrcoef(crowd.p, ours.reliability)[0, 1] > 0.9
    mean = {name: np.mean(values) for name, values in wrong.items()}
    assert mean["top two"] <= mean["votes"] - 0.05
    assert mean["top two"] <= mean["dawid-skene"] - 0.05
    assert mean["top two"] <= mean["oracle"] + 0.02
    assert np.mean(off["top two"]) <= min(np.mean(off["votes"]), np.mean(off["dawid-skene"])) - 0.015


def test_a_worker_who_guesses_has_no_say():
    crowd = simulate(1)
    noise = np.random.default_rng(9).integers(0, K, (10, crowd.answers.shape[1]))
    ours = top_two(np.concatenate([crowd.answers, noise]), K)
    assert ours.reliability[-10:].max() < 0.15 < np.mean(ours.reliability[:-10])
    assert abs(pair_wrong(crowd, ours.first, ours.second) - pair_wrong(crowd, *oracle(crowd))) <= 0.03


def test_labels_answered_by_all_alike_are_sure():
    answers = np.tile(np.arange(9) % 3, (12, 1)).astype(np.int64)
    ours = top_two(answers, 3)
    assert np.array_equal(ours.first, np.arange(9) % 3) and (ours.first != ours.second).all()
    assert (ours.probability > 0.85).all() and (ours.reliability > 0.9).all()


def test_what_cannot_be_told_apart_is_refused():
    answers = np.array([[0, 1], [1, 0]])
    for given, labels, said in (
        (answers, 2, "2 labels"),
        (answers + 3, 3, r"label numbers in \[0, 3\)"),
        (np.array([[0, -1], [1, -1]]), 3, "every worker and every item"),
    ):
        with pytest.raises(InputError, match=said):
            top_two(given, labels)
