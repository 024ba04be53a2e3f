"""⊥Grad finds the rule where Adam learns by heart; the whole of it, modulo 113, is benchmarks/bench_grokking.py."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_orthograd_answers_sums_it_never_saw_and_adam_does_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from bench_grokking import learn

    rule = learn("⊥Grad, softmax", modulus=59, epochs=200, seed=0, stop=True)
    assert rule.generalised is not None and rule.unseen[-1] >= 0.95
    heart = learn("Adam, softmax", modulus=59, epochs=rule.generalised, seed=0)
    assert heart.seen[-1] == 1 and heart.unseen[-1] <= 0.05
