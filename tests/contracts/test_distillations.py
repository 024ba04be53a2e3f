"""Every row of DISTILLATIONS: the papers' formulas with one positive, the identities they promise, what all of them keep."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax, softmax

from dexml.distillation import DISTILLATIONS, Shortlist

B, M = 6, 9


def logits(seed: int, rows: int = B, width: int = M) -> torch.Tensor:
    return 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known(positives: list[list[int]], width: int = M, padded: int = 0, seed: int = 1) -> Shortlist:
    positive = torch.zeros(len(positives), width, dtype=torch.bool)
    for row, places in enumerate(positives):
        positive[row, places] = True
    there = torch.ones_like(positive)
    there[:, width - padded :] = False
    return Shortlist(positive, there, logits(seed, len(positives), width), logits(seed + 1, len(positives), width))


ONE = [[0], [3], [8], [2], [5], [5]]
SEVERAL = [[0, 3], [7], [], [1, 2, 5, 6], [4], [0]]


@pytest.fixture(params=list(DISTILLATIONS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def published_nkd(student, teacher, target, gamma=1.5, temperature=1.0):
    rows = torch.arange(len(target))
    of_target = -(softmax(teacher, 1)[rows, target] * log_softmax(student, 1)[rows, target]).mean()
    rest = torch.ones_like(student, dtype=torch.bool)
    rest[rows, target] = False
    others, of_teacher = (z[rest].reshape(len(z), -1) / temperature for z in (student, teacher))
    of_rest = -(softmax(of_teacher, 1) * log_softmax(others, 1)).sum(1).mean()
    return of_target + gamma * temperature**2 * of_rest


def published_uskd(student, weak, target, alpha=1.0, beta=0.1, mu=0.005):
    rows, classes = torch.arange(len(target)), student.shape[1]
    logs = log_softmax(student, 1)
    s, w = logs.exp(), softmax(weak, 1)
    p = (s[rows, target] ** 2 + 1 - (s[rows, target] ** 2).mean()).detach()
    of_target = -(p * logs[rows, target]).mean()
    smooth = torch.full_like(student, 0.1 / classes)
    smooth[rows, target] += 0.9
    of_weak = -(smooth * log_softmax(weak, 1)).sum(1).mean()
    score = w / (1 - w[rows, target])[:, None] + s / (1 - s[rows, target])[:, None]
    law = torch.zeros_like(student)
    for row in range(len(student)):
        for place, label in enumerate(score[row].argsort(descending=True).tolist()):
            law[row, label] = 1 / (place + 1)
    rest = torch.ones_like(student, dtype=torch.bool)
    rest[rows, target] = False
    law, others = law[rest].reshape(len(s), -1), student[rest].reshape(len(s), -1)
    of_rest = -(law / law.sum(1, keepdim=True) * log_softmax(others, 1)).sum(1).mean()
    return alpha * of_target + beta * of_rest + mu * of_weak


def forward_divergence(student, teacher):
    return (softmax(teacher, 1) * (log_softmax(teacher, 1) - log_softmax(student, 1))).sum(1).mean()


def test_nkd_of_one_positive_is_the_published_formula():
    student, given = logits(0), known(ONE)
    for gamma, temperature in ((1.5, 1.0), (3.5, 3.0)):
        loss = DISTILLATIONS.build("nkd", {"gamma": gamma, "temperature": temperature})
        expected = published_nkd(student, given.teacher, torch.tensor([row[0] for row in ONE]), gamma, temperature)
        assert loss(student, given).item() == pytest.approx(expected.item(), abs=1e-6)


def test_uskd_of_one_positive_is_the_published_formula_with_probabilities_in_the_rank():
    student, given = logits(0), known(ONE)
    expected = published_uskd(student, given.weak, torch.tensor([row[0] for row in ONE]))
    assert DISTILLATIONS.build("uskd")(student, given).item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_student_that_ranks_the_rest_as_the_teacher_does_has_nothing_to_learn_there_and_classical_distillation_does():
    given = known(ONE)
    assert given.teacher is not None
    student = given.teacher.clone()
    for row, (target,) in enumerate(ONE):
        student[row, target] += 4  # another mass on the target, the rest alike once normalised
    student.requires_grad_()
    nkd = DISTILLATIONS.build("nkd")
    gap = nkd.of_the_rest(student, given) - nkd.of_the_rest(given.teacher, given)
    (gradient,) = torch.autograd.grad(gap.sum(), student)
    assert gap.detach().abs().max() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() == pytest.approx(0, abs=1e-12)
    p, r = softmax(given.teacher, 1), softmax(student, 1)
    classical = (p * (p / r.detach()).log()).masked_fill(given.positive, 0).sum(1)
    assert classical.min() > 0.01


def test_topkld_is_the_forward_divergence_of_all_labels_and_the_reverse_of_none():
    student, given = logits(0), known(ONE)
    forward, reverse = forward_divergence(student, given.teacher), forward_divergence(given.teacher, student)
    ways = [
        ({"top": M}, forward),
        ({"top": 0}, reverse),
        ({"top": M, "swap": True}, reverse),
        ({"top": 0, "swap": True}, forward),
        ({"top": 0, "rest": 0.5}, 0.5 * reverse),
    ]
    for options, expected in ways:
        value = DISTILLATIONS.build("topkld", options)(student, given)
        assert value.item() == pytest.approx(expected.item(), abs=1e-9), options


def test_no_term_of_topkld_is_negative_for_any_k():
    student, given = logits(0), known(SEVERAL)
    values = [
        DISTILLATIONS.build("topkld", {"top": top, "rest": rest})(student, given) for top in range(1, M) for rest in (0, 1)
    ]
    assert min(values) > 0


def test_kl_top_is_renormalised_over_the_best():
    student, given = logits(0), known(ONE)
    best = given.teacher.topk(4, dim=1).indices
    expected = forward_divergence(student.gather(1, best), given.teacher.gather(1, best))
    assert DISTILLATIONS.build("kl_top", {"top": 4})(student, given).item() == pytest.approx(expected.item(), abs=1e-9)
    whole = DISTILLATIONS.build("kl_top", {"top": 100})(student, given)
    assert whole.item() == pytest.approx(forward_divergence(student, given.teacher).item(), abs=1e-9)


def test_several_positives_are_a_target_each_against_the_labels_that_are_none(name: str):
    """The loss of a set is the mean of the losses with each positive alone, the others struck from the list."""
    student, given = logits(0, 1), known([[1, 4, 6]])
    whole = DISTILLATIONS.build(name)(student, given)
    alone = []
    for target in (1, 4, 6):
        kept = [place for place in range(M) if place == target or place not in (1, 4, 6)]
        one = Shortlist(*(field[:, kept] for field in (given.positive, given.there, given.teacher, given.weak)))
        alone.append(DISTILLATIONS.build(name)(student[:, kept], one))
    # The set's labels share one place in USKD's ranking, and its soft labels are held against the mean of all.
    assert whole.item() == pytest.approx(torch.stack(alone).mean().item(), abs=0.5 if name == "uskd" else 1e-9)


def test_gradcheck_in_float64(name: str):
    given = known(SEVERAL, padded=1)
    weak = given.weak.requires_grad_()
    loss = DISTILLATIONS.build(name)
    fixed = Shortlist(given.positive, given.there, given.teacher, weak if loss.weak else None)
    if name != "uskd":
        assert torch.autograd.gradcheck(lambda z: loss(z, fixed), logits(0).requires_grad_())
        return
    # USKD's soft labels are made of the scores and then held fixed: its gradient is that of the loss with these labels.
    scores = logits(0).requires_grad_()
    loss(scores, fixed).backward()
    for tensor in (scores, weak):
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all() and tensor.grad.abs().sum() > 0
    held = DISTILLATIONS.build(name, {"alpha": 0, "beta": 0, "mu": 1})
    assert torch.autograd.gradcheck(
        lambda w: held(logits(0), Shortlist(given.positive, given.there, None, w)), logits(2).requires_grad_()
    )


def test_padding_changes_nothing(name: str):
    student, given = logits(0), known(SEVERAL)
    loss = DISTILLATIONS.build(name)
    filler = torch.full((B, 2), torch.nan, dtype=torch.float64)
    none = torch.zeros(B, 2, dtype=torch.bool)
    parts = ((given.positive, none), (given.there, none), (given.teacher, filler), (given.weak, filler))
    padded = Shortlist(*(torch.cat(pair, dim=1) for pair in parts))
    wide = torch.cat([student, torch.zeros_like(filler)], dim=1).requires_grad_()
    value = loss(wide, padded)
    assert value.item() == pytest.approx(loss(student, given).item(), abs=1e-12)
    (gradient,) = torch.autograd.grad(value, wide)
    assert torch.isfinite(gradient).all() and (gradient[:, M:] == 0).all()


def test_rows_of_positives_alone_or_of_nothing_have_finite_gradients(name: str):
    positive = torch.tensor([[True, True], [False, False]])
    given = Shortlist(positive, torch.tensor([[True, True], [False, False]]), logits(1, 2, 2), logits(2, 2, 2))
    student = logits(0, 2, 2).requires_grad_()
    value = DISTILLATIONS.build(name)(student, given)
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()


def test_a_step_along_the_gradient_comes_nearer_to_the_teacher(name: str):
    given, student = known(SEVERAL), logits(0).requires_grad_()
    loss = DISTILLATIONS.build(name)
    before = loss(student, given)
    (gradient,) = torch.autograd.grad(before, student)
    assert loss(student - 0.1 * gradient, given) < before


def test_hard_labels_are_no_part_of_it():
    """`dexml distill` adds their loss over all labels: NKD with γ = 0 is the target's cross-entropy times the teacher's T."""
    given = known(ONE)
    student, target = logits(0), torch.tensor([row[0] for row in ONE])
    sure = Shortlist(given.positive, given.there, torch.where(given.positive, 50.0, 0.0).double())
    value = DISTILLATIONS.build("nkd", {"gamma": 0})(student, sure)
    assert value.item() == pytest.approx(cross_entropy(student, target).item(), abs=1e-6)
