"""What is in a data set and what is wrong with it: errors, which keep it from being read, and warnings."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from data.filters import same_text
from data.format import Format
from data.lines import excerpt
from dexml.errors import InputError
from dexml.types import Int64Array, LabelTable, Positives, Split

LONG = 2000  # characters of a text that is called long
SHOWN = 3  # examples of a warning
# Head and tail as shares of the training pairs: the labels that most pairs have, and those that the rarest have.
_HEAD, _TAIL = 1 / 3, 2 / 3


@dataclass(frozen=True)
class Finding:
    """What is wrong: `level` is "error" or "warning", `where` the labels, a split, or two of them; `count` how often."""

    level: str
    where: str
    what: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """A data set measured: `labels` and `splits` hold counts by name, `frequency` how the labels share the training rows."""

    path: str
    format: str
    labels: Mapping[str, Any]
    splits: Mapping[str, Mapping[str, Any]]
    frequency: Mapping[str, Any]
    findings: tuple[Finding, ...] = field(default=())

    @property
    def broken(self) -> bool:
        """Return whether anything cannot be read."""
        return any(finding.level == "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return the whole as JSON has it."""
        return asdict(self)


def check(files: Format, name: str, long: int = LONG) -> Check:
    """Read all of a data set in the format `name` and say what is in it; what cannot be read is a finding, not an error."""
    findings: list[Finding] = []
    try:
        table: LabelTable | None = files.labels()
    except InputError as error:
        findings.append(Finding("error", "labels", str(error), 1))
        table = None
    splits: dict[str, Split] = {}
    for split in files.splits() if table is not None else ():
        try:
            splits[split] = files.read(split)
        except InputError as error:
            findings.append(Finding("error", split, str(error), 1))
    if table is not None and not files.splits():
        findings.append(Finding("warning", "data", "no split is there", 1))
    counts = {split: _split_counts(read) for split, read in splits.items()}
    for split, read in splits.items():
        findings += _of_texts(split, read.texts, long)
        findings += _of_split(split, read, table)
    if table is not None:
        findings += _of_texts("labels", table.texts, long)
    frequency: dict[str, Any] = {}
    if table is not None and "train" in splits:
        train = splits["train"].positives.counts()
        frequency = label_frequency(train)
        findings += _of_labels(table, train, splits)
    for other in (split for split in splits if split != "train" and "train" in splits):
        findings += _leakage(splits["train"], other, splits[other])
    labels = {} if table is None else {"count": len(table), "characters": _mean_length(table.texts)}
    findings.sort(key=lambda finding: finding.level)
    return Check(str(files.root), name, labels, counts, frequency, tuple(findings))


def label_frequency(counts: Int64Array) -> dict[str, Any]:
    """Return how L labels share the training rows: labels by how often they occur, the quartiles, and head, torso and tail.

    Head, torso and tail are the numbers of labels, most frequent first, that have a third of all (row, label) pairs each.
    """
    edges = [0, 1, 2, 5, 10, 100, 1000]
    steps = zip(edges, [*edges[1:], None], strict=True)
    rows: dict[str, int] = {}
    for low, high in steps:
        name = str(low) if high == low + 1 else (f"{low}-{high - 1}" if high is not None else f"{low}+")
        rows[name] = int(((counts >= low) & (counts < (high or np.inf))).sum())
    falling = np.sort(counts)[::-1]
    shares = np.cumsum(falling) / max(1, falling.sum())
    head = int(np.searchsorted(shares, _HEAD)) + 1 if falling.sum() else 0
    torso = int(np.searchsorted(shares, _TAIL)) + 1 - head if falling.sum() else 0
    quartiles = np.quantile(counts, [0.25, 0.5, 0.75]).tolist() if len(counts) else []
    named = {"head": head, "torso": max(torso, 0), "tail": len(counts) - head - max(torso, 0)}
    return {"labels_by_training_rows": rows, "quartiles": quartiles, "most": int(falling[:1].sum()), **named}


def _split_counts(split: Split) -> dict[str, Any]:
    lengths = np.diff(split.positives.indptr)
    return {
        "rows": len(split),
        "positives": len(split.positives.indices),
        "per_row": round(float(lengths.mean()), 2) if len(lengths) else 0.0,
        "most_in_a_row": int(lengths.max()) if len(lengths) else 0,
        "rows_without_labels": int((lengths == 0).sum()),
        "labels_used": int((split.positives.counts() > 0).sum()),
        "excluded": None if split.excluded is None else len(split.excluded.indices),
        "characters": _mean_length(split.texts),
    }


def _mean_length(texts: Sequence[str]) -> float:
    return round(sum(map(len, texts)) / max(1, len(texts)), 1)


def _warning(where: str, what: str, rows: Sequence[int], examples: Sequence[str]) -> list[Finding]:
    """Return a warning about `rows` (from 0), with the first of `examples`, or none where there are no rows."""
    if not rows:
        return []
    shown = tuple(f"row {row}: {excerpt(text)}" for row, text in zip(rows[:SHOWN], examples, strict=False))
    return [Finding("warning", where, what, len(rows), shown)]


def _of_texts(where: str, texts: Sequence[str], long: int) -> list[Finding]:
    """Return what is odd about single texts: doubles, length, and traces of a wrong encoding."""
    seen: set[str] = set()
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        if text in seen:
            rows.setdefault("the text stands in an earlier row already", []).append(row)
        seen.add(text)
        if len(text) > long:
            rows.setdefault(f"the text has more than {long:,} characters", []).append(row)
        for fault in () if text.isascii() and text.isprintable() else _faults(text):
            rows.setdefault(fault, []).append(row)
    return [made for what, at in rows.items() for made in _warning(where, what, at, [texts[row] for row in at[:SHOWN]])]


def _faults(text: str) -> list[str]:
    found: list[str] = []
    if "\ufffd" in text:
        found.append("U+FFFD: a byte was lost when it was decoded")
    if not text.isascii() and _mojibake(text):
        found.append("UTF-8 that was read as Windows-1252 (Ã© for é)")
    if not unicodedata.is_normalized("NFC", text):
        found.append("not in Unicode's normal form C: letters and accents apart")
    if any(unicodedata.category(character) == "Cc" and character not in "\t\n\r" for character in text):
        found.append("control characters")
    return found


def _mojibake(text: str) -> bool:
    """Return whether the text is UTF-8 once more when its characters are taken for bytes."""
    try:
        return text.encode("cp1252").decode("utf-8") != text
    except UnicodeError:
        return False


def _of_split(name: str, split: Split, table: LabelTable | None) -> list[Finding]:
    empty = np.flatnonzero(np.diff(split.positives.indptr) == 0).tolist()
    found = _warning(name, "the row has no labels", empty, [split.texts[row] for row in empty[:SHOWN]])
    if table is None:
        return found
    same = same_text(split.texts, table.texts)
    if split.excluded is not None and len(same.indices):
        same = Positives.from_matrix(same.matrix() - same.matrix().multiply(split.excluded.matrix()))
    rows = np.flatnonzero(np.diff(same.indptr)).tolist()
    what = "the text is a label's own text, and the pair is not excluded (`dexml data filter`)"
    return found + _warning(name, what, rows, [split.texts[row] for row in rows[:SHOWN]])


def _of_labels(table: LabelTable, train: Int64Array, splits: Mapping[str, Split]) -> list[Finding]:
    unseen = np.flatnonzero(train == 0).tolist()
    found = _warning("labels", "the label has no training row", unseen, [table.texts[row] for row in unseen[:SHOWN]])
    for name, split in splits.items():
        rows = np.flatnonzero((split.positives.counts() > 0) & (train == 0)).tolist() if name != "train" else []
        found += _warning(
            name, "the label occurs here, but in no training row", rows, [table.texts[row] for row in rows[:SHOWN]]
        )
    return found


def _leakage(train: Split, name: str, split: Split) -> list[Finding]:
    """Return the rows of a split whose text is in train too: with the same labels the answer was learnt by heart."""
    place = {text: row for row, text in enumerate(train.texts)}
    shared = [(row, place[text]) for row, text in enumerate(split.texts) if text in place]
    same = [row for row, there in shared if np.array_equal(split.positives.row(row), train.positives.row(there))]
    other = sorted({row for row, _ in shared} - set(same))
    told = (("the text is in train too, with the same labels", same), ("the text is in train too, with other labels", other))
    return [
        made for what, at in told for made in _warning(f"train and {name}", what, at, [split.texts[row] for row in at[:SHOWN]])
    ]


__all__ = ["LONG", "Check", "Finding", "check", "label_frequency"]
