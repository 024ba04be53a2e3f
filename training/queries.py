"""Single queries as one reads them: the text, its true labels, what was answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from dexml.types import Int64Array, LabelTable
from training.scores import Judge

TEXT, LABEL = 400, 120  # characters shown
MOST = 5  # labels shown in a column


def cards(rows: Int64Array, judge: Judge, answers: Mapping[str, tuple[Int64Array, Any]], said: Mapping[int, str]) -> str:
    """Return a list of queries, each with what is `said` of it, its true labels and the answers (N, K) of each name.

    With the answers go their scores (N, K), or None. A true label has the place where the first of the `answers` has it.
    """
    return f'<ol class="queries">{"".join(_card(int(row), judge, answers, said[int(row)]) for row in rows)}</ol>'


def table(
    rows: Int64Array, judge: Judge, ranked: Int64Array, name: str, earned: Any
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return the heads and rows of a table of queries: number, figure, text, ids of the true labels and of the answers."""
    listed = []
    for row in rows.tolist():
        true = " ".join(judge.labels.ids[label] for label in _true(judge, row))
        said = " ".join(judge.labels.ids[label] for label in ranked[row, :10].tolist() if label >= 0)
        listed.append((row, float(earned[row]), judge.split.texts[row], true, said))
    return ("row", name, "text", "true", "answers"), listed


def _card(row: int, judge: Judge, answers: Mapping[str, tuple[Int64Array, Any]], said: str) -> str:
    true = _true(judge, row)
    first = next(iter(answers.values()))[0][row].tolist()
    places = {label: place for place, label in enumerate(first, 1) if label >= 0}
    order = sorted(true, key=lambda label: places.get(label, len(first) + 1))
    found = sum(label in places for label in true)
    head = f"row {row} · {said} · {found} of {len(true)} true labels among the first {len(first)}"
    columns = [
        _column("True labels", [_true_label(label, places.get(label), judge.labels) for label in order[:MOST]], len(true))
    ]
    for name, (ranked, scores) in answers.items():
        shown = [
            _answer(label, place, None if scores is None else scores[row, place], label in true, judge.labels)
            for place, label in enumerate(ranked[row, :MOST].tolist())
            if label >= 0 or (scores is not None and np.isfinite(scores[row, place]))
        ]
        columns.append(_column(f"Answers, {name}", shown, len(shown)))
    body = "".join(columns)
    return (
        f'<li><p class="query">{escape(_short(judge.split.texts[row], TEXT))}</p><p class="soft">{escape(head)}</p>{body}</li>'
    )


def _column(title: str, shown: Sequence[str], of: int) -> str:
    more = f'<li class="soft">and {of - len(shown):,} more</li>' if of > len(shown) else ""
    none = "" if shown else '<li class="soft">none</li>'
    return f'<p class="of">{escape(title)}</p><ul aria-label="{escape(title)}">{"".join(shown)}{more}{none}</ul>'


def _true_label(label: int, place: int | None, labels: LabelTable) -> str:
    where = "not found" if place is None else f"answer {place}"
    return f'<li><span>{escape(_name(label, labels))}</span><span class="place">{where}</span></li>'


def _answer(label: int, place: int, score: float | None, right: bool, labels: LabelTable) -> str:
    mark = (
        '<b class="right" role="img" aria-label="right">✓</b>'
        if right
        else '<b class="wrong" role="img" aria-label="wrong">✗</b>'
    )
    of = "" if score is None else f'<span class="place">{score:.3f}</span>'
    name = _name(label, labels) if label >= 0 else "a label that the data set does not have"
    return f"<li><span>{mark} {escape(name)}</span>{of}</li>"


def _name(label: int, labels: LabelTable) -> str:
    return _short(labels.texts[label] or labels.ids[label], LABEL)


def _true(judge: Judge, row: int) -> list[int]:
    positives = judge.split.positives
    found: list[int] = positives.indices[positives.indptr[row] : positives.indptr[row + 1]].tolist()
    return found


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
