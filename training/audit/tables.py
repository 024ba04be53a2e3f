"""What an audit found, in numbers: the tables of the terminal and of the page, and the document for programs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from index.audit import Boundary, Push
from index.live import LiveLabels
from training.audit.measure import Audit, Reach, Strike

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
LABELS = 10  # of each kind that are listed
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def angles(audit: Audit) -> dict[str, list[float]]:
    """Return the degrees of each kind of change, NaN where it is out of reach, the nearest changes first."""
    top = audit.asked.top
    found = {
        f"any change in the first {top}": [bound.angle for bound in audit.orders],
        f"a new label in the first {top}": [bound.angle for bound in audit.entries],
    }
    return found | {name: [push.angle for push in moves] for name, moves in audit.moves.items()}


def of_pushes(audit: Audit) -> Table:
    """Return quantiles of the smallest pushes, in degrees."""
    heads = ("degrees", *(f"{100 * of:.0f} %" for of in QUANTILES), "out of reach")
    rows = []
    for name, degrees in angles(audit).items():
        there = np.array(degrees)[np.isfinite(degrees)]
        values = [f"{value:.2f}" for value in np.quantile(there, QUANTILES)] if len(there) else ["–"] * len(QUANTILES)
        rows.append((name, *values, str(len(degrees) - len(there))))
    return heads, rows


def of_reach(audit: Audit) -> Table:
    """Return how many lists of each kind and length can be returned, and what that takes."""
    heads = ("lists of", "K", "lists", "reachable", "out of reach, proved", "undecided", "median push, degrees")
    rows = []
    for of in audit.reach:
        degrees = [push.angle for push in of.pushes if push.reachable]
        push = f"{np.median(degrees):.1f}" if degrees else "–"
        rows.append((of.kind, str(of.k), str(len(of.pushes)), *(str(of.count(said)) for said in (True, False, None)), push))
    return heads, rows


def of_attacks(audit: Audit) -> Table:
    """Return the success of each attack at equal iterations, and the norm of its δ."""
    heads = ("K", "attack", "succeeded, percent", "mean ‖δ‖", "of ‖x‖, percent", "mean ‖δ‖ where both succeed")
    rows: list[tuple[str, ...]] = []
    for strike in audit.strikes:
        of, both = strike.attacked, _both(strike, audit.strikes)
        rows.append(
            (
                str(strike.k),
                strike.way,
                f"{100 * of.rate:.0f}",
                _mean(of.norms),
                _mean(100 * of.relative),
                _mean(of.norms[both]),
            )
        )
    return heads, rows


def _both(strike: Strike, strikes: Sequence[Strike]) -> Any:
    """Return which queries all attacks on lists of that length succeed on, bool (B)."""
    return np.all([other.attacked.reached > 0 for other in strikes if other.k == strike.k], axis=0)


def _mean(values: Any) -> str:
    there = values[np.isfinite(values)]
    return f"{there.mean():.2f}" if len(there) else "–"


def of_labels(audit: Audit, labels: LiveLabels, side: str) -> Table:
    """Return the labels that most often are the nearest to come in ("rises") or to go ("falls"), with the smallest push."""
    grouped: dict[int, list[float]] = defaultdict(list)
    for bound in audit.entries:
        grouped[getattr(bound, side)].append(bound.angle)
    order = sorted(grouped, key=lambda row: (-len(grouped[row]), min(grouped[row])))[:LABELS]
    heads = ("label", "queries", "smallest push, degrees")
    return heads, [(name_of(row, labels), str(len(grouped[row])), f"{min(grouped[row]):.2f}") for row in order]


def fragile(audit: Audit) -> list[int]:
    """Return the places (in `audit.rows`) of all queries, those first whose first labels take the smallest push to change."""
    return sorted(range(len(audit.orders)), key=lambda place: audit.orders[place].angle)


def said(bound: Boundary, labels: LiveLabels) -> str:
    """Return a change in words."""
    return f"{bound.angle:.2f}°: “{name_of(bound.rises, labels)}” passes “{name_of(bound.falls, labels)}”"


def name_of(row: int, labels: LiveLabels, most: int = 80) -> str:
    """Return a label's text, or its id where it has none."""
    text = " ".join((labels.texts[row] or labels.ids[row]).split())
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def document(audit: Audit, labels: LiveLabels, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything as JSON; labels by id, queries by row, no text. Each list out of reach comes with its certificate."""
    moves = [{name: _number(pushes[place].angle) for name, pushes in audit.moves.items()} for place in range(len(audit.orders))]
    queries = [
        {"row": int(row), "any_change": _bound(order, labels), "new_label": _bound(entry, labels), "moves": move}
        for row, order, entry, move in zip(audit.rows, audit.orders, audit.entries, moves, strict=False)
    ]
    return {
        "audit": dict(facts),
        "finished": audit.finished,
        "queries": queries,
        "lists": [_reach(of, audit, labels) for of in audit.reach],
        "attacks": [
            {
                "k": strike.k,
                "attack": strike.way,
                "rate": strike.attacked.rate,
                "reached": strike.attacked.reached.tolist(),
                "norms": [_number(norm) for norm in strike.attacked.norms.tolist()],
                "relative": [_number(norm) for norm in strike.attacked.relative.tolist()],
            }
            for strike in audit.strikes
        ],
    }


def _reach(of: Reach, audit: Audit, labels: LiveLabels) -> dict[str, Any]:
    pushes = [_push(push, int(row), labels) for push, row in zip(of.pushes, audit.rows, strict=True)]
    return {"kind": of.kind, "k": of.k, "reachable": of.count(True), "unreachable": of.count(False), "pushes": pushes}


def _push(push: Push, row: int, labels: LiveLabels) -> dict[str, Any]:
    found: dict[str, Any] = {"row": row, "list": [labels.ids[label] for label in push.target.tolist()]}
    if push.reachable:
        return {**found, "degrees": push.angle}
    if push.certificate is None:
        return {**found, "undecided_after_rounds": push.rounds}
    proof = push.certificate
    pairs = zip(proof.better.tolist(), proof.worse.tolist(), proof.weights.tolist(), strict=True)
    inequalities = [[labels.ids[better], labels.ids[worse], weight] for better, worse, weight in pairs]
    return {**found, "certificate": {"bound": proof.bound, "better_worse_weight": inequalities}}


def _bound(bound: Boundary, labels: LiveLabels) -> dict[str, Any]:
    return {"degrees": _number(bound.angle), "rises": labels.ids[bound.rises], "falls": labels.ids[bound.falls]}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


__all__ = ["angles", "document", "fragile", "name_of", "of_attacks", "of_labels", "of_pushes", "of_reach", "said"]
