"""The embedded demo set: sentences of the installed scientific packages' documentation, to be answered with the callable.

Labels are public callables. Queries are sentences of their docstrings, the callable's own name masked by "…". A sentence's
positives are the callable and what its *See Also* names; a summary's is the callable alone, so that it ranks before its
relatives. The same sentence in a few docstrings is one query with the union of their positives; in many it is boilerplate.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from data.callables import PACKAGES, PublicCallable, collect, modules
from data.docstrings import Docstring, parse
from data.jsonl import JsonLines
from dexml.types import InputError, LabelTable, Positives, Split

RECIPE = 1  # raise it when the same packages give another data set
RECORD = "pydocs.json"
MASK = "…"
UNSEEN = 0.08  # share of the callables that training never sees
HELD_OUT = 0.08  # share of the sentences of seen callables that go to test

# Sentences taken of each kind; a callable has at most MOST. Descriptions of parameters are many and say little.
_ROOM = {"extended": 8, "notes": 5, "returns": 2, "examples": 2, "parameters": 5}
_MOST = 14
_OWNERS = 5  # a sentence of more callables than this is boilerplate
_WORDS = range(5, 51)
_DULL = re.compile(
    r"(?:see |read more|refer to|for (?:more|further|full|a full|details)|default|deprecated|new in version|changed in|"
    r"added in|alias (?:for|of)|this is an alias|note that this function is an alias|please see|as an instance of)",
    re.IGNORECASE,
)
_ALIAS = re.compile(r"(?:alias (?:for|of)|this is an alias|see |in-place version|performs the same operation)", re.I)
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


@dataclass
class _Row:
    """One query: its text as first met, who says it, and whether someone says it in one line of summary."""

    text: str
    owners: set[int] = field(default_factory=set)
    positives: set[int] = field(default_factory=set)
    summary: bool = False


def record(packages: Sequence[str], seed: int) -> dict[str, Any]:
    """Return what the data set is a function of: the recipe, the seed and the packages' versions, and which are missing."""
    versions: dict[str, str] = {}
    missing: list[str] = []
    for package in packages:
        try:
            versions[package] = version(_DISTRIBUTIONS.get(package, package))
        except PackageNotFoundError:
            missing.append(package)
    return {"recipe": RECIPE, "seed": seed, "packages": versions, "missing": missing}


def up_to_date(folder: Path, seed: int = 0) -> dict[str, Any] | None:
    """Return the summary that stands in `folder` if a new build would give the same files, else None."""
    try:
        made = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = [folder / f"{name}.jsonl" for name in ("labels", "train", "test", "unseen")]
    wanted = record(list(PACKAGES), seed)
    if not isinstance(made, dict) or any(made.get(key) != value for key, value in wanted.items()):
        return None
    return made if all(path.is_file() for path in files) else None


def build(
    folder: Path,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
    packages: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write the data set as JSON Lines into `folder` and return its summary, which stands there as `pydocs.json` too.

    Splits: "train"; "test", sentences held out of callables that train knows; "unseen", sentences of callables that occur in
    no positives of train. Missing packages are left out and named under "missing". `progress` is told what is being read
    and the share that is done; `names` limits the modules, for tests. Raises InputError when no package is there.
    """
    basis = record(list(PACKAGES) if packages is None else packages, seed)
    chosen = {package: _modules(package, names) for package in basis["packages"]}
    total = sum(map(len, chosen.values()))
    if not total:
        raise InputError(f"pydocs: none of the packages {', '.join(basis['missing']) or '(none named)'} is installed")
    read = 0

    def tell(module: str) -> None:
        nonlocal read
        if progress is not None:
            progress(module, read / total)
        read += 1

    found = [made for package, those in chosen.items() for made in collect(package, those, tell)]
    labels, splits = assemble(found, seed)
    counts = {"labels": len(labels), **{name: len(split) for name, split in splits.items()}}
    summary = {"about": _ABOUT, **basis, "counts": counts}
    (folder / RECORD).unlink(missing_ok=True)  # while the files change, nothing vouches for them
    JsonLines.write(folder, labels, splits)
    temporary = folder / f".{RECORD}.{os.getpid()}.tmp"
    temporary.write_text(f"{json.dumps(summary, indent=2)}\n", encoding="utf-8")
    os.replace(temporary, folder / RECORD)
    return summary


def assemble(found: Sequence[PublicCallable], seed: int) -> tuple[LabelTable, dict[str, Split]]:
    """Return the labels, sorted by name, and the splits "train", "test" and "unseen" of the given callables."""
    parsed = {made.name: parse(made.doc) for made in found}
    kept = sorted((made for made in found if _speaks(parsed[made.name])), key=lambda made: made.name)
    rows = _rows(kept, parsed)
    labels = LabelTable(
        tuple(made.name for made in kept), tuple(label_text(made.name, parsed[made.name].summary) for made in kept)
    )
    generator = np.random.default_rng(seed)
    unseen = set(np.flatnonzero(generator.random(len(kept)) < UNSEEN).tolist())
    draws = generator.random(len(rows))
    known: set[int] = set()  # callables that training has a sentence of
    sides: dict[str, list[tuple[str, set[int]]]] = {"train": [], "test": [], "unseen": []}
    # Summaries first: they are never held out, and with one in training all other sentences of a callable may be.
    for place in sorted(range(len(rows)), key=lambda place: not rows[place].summary):
        row = rows[place]
        if row.owners <= unseen:
            if not row.summary:  # the label's text quotes it: finding it again would prove nothing
                sides["unseen"].append((row.text, row.positives))
        elif draws[place] < HELD_OUT and not row.summary and row.owners <= known:
            sides["test"].append((row.text, row.positives))
        else:
            known |= row.owners
            sides["train"].append((row.text, row.positives - unseen))
    return labels, {name: _split(side, len(labels)) for name, side in sides.items()}


def label_text(name: str, summary: str) -> str:
    """Return what an encoder reads of a callable: its name in words, then the summary.

    >>> label_text("sklearn.linear_model.LinearRegression", "Ordinary least squares.")
    'sklearn linear model linear regression: Ordinary least squares.'
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name.replace(".", " ").replace("_", " "))
    return f"{' '.join(words.lower().split())}: {summary}"


def mask(text: str, name: str) -> str:
    """Return `text` with every mention of the callable `name` as "…", also inside a dotted path and in any case.

    >>> mask("Like numpy.sort, but sort() in place; argsort differs.", "numpy.sort")
    'Like …, but … in place; argsort differs.'
    """
    own = re.escape(name.rpartition(".")[2])
    return re.sub(rf"(?:\b[A-Za-z_]\w*\.)*(?<!\w){own}(?!\w)(?:\(\))?", MASK, text, flags=re.IGNORECASE)


def key(text: str) -> str:
    """Return what makes two sentences the same query: their words, in any case and punctuation."""
    return " ".join(re.findall(rf"\w+|{MASK}", text.casefold()))


def _modules(package: str, names: Sequence[str] | None) -> list[str]:
    return [name for name in modules(package) if names is None or name in names]


def _speaks(doc: Docstring) -> bool:
    return len(doc.summary.split()) > 1 and not _ALIAS.match(doc.summary)


def _rows(kept: Sequence[PublicCallable], parsed: dict[str, Docstring]) -> list[_Row]:
    """Return the queries of all callables, boilerplate removed and equal ones merged, sorted by text."""
    numbers = {path: number for number, made in enumerate(kept) for path in made.paths}
    table: dict[str, _Row] = {}
    candidates: list[list[tuple[str, str]]] = []
    for number, made in enumerate(kept):
        doc = parsed[made.name]
        summary = mask(doc.summary, made.name)
        named = [(kind, mask(text, made.name)) for kind, text in doc.sentences]
        sentences = [("summary", summary)] if _plain(summary, range(2, 51)) else []
        sentences += [(kind, text.removesuffix(":")) for kind, text in named if _plain(text, _WORDS)]
        candidates.append(sentences)
        for _, text in sentences:
            table.setdefault(key(text), _Row(text)).owners.add(number)
    rows: dict[str, _Row] = {}
    for number, made in enumerate(kept):
        related = {number, *_related(made, parsed[made.name], numbers)}
        for kind, text in _capped([pair for pair in candidates[number] if len(table[key(pair[1])].owners) <= _OWNERS]):
            row = rows.setdefault(key(text), _Row(table[key(text)].text))
            row.owners.add(number)
            row.positives |= {number} if kind == "summary" else related
            row.summary |= kind == "summary"
    # An owner whose room was full still is one: the sentence would answer for it just as well.
    for name, row in rows.items():
        row.positives |= table[name].owners
        row.owners |= table[name].owners
    return [rows[name] for name in sorted(rows)]


def _plain(text: str, words: range) -> bool:
    """Return whether a sentence reads as English: enough words, mostly letters, no address, no version note."""
    count = sum(any(letter.isalpha() for letter in word) for word in text.split())
    letters = sum(letter.isalpha() or letter in f" {MASK}" for letter in text)
    return (
        count in words
        and letters >= 0.85 * len(text)
        and "http" not in text
        and text.count("=") < 2
        and (words is not _WORDS or not _DULL.match(text))
    )


def _capped(sentences: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return at most MOST of a callable's sentences, prose before parameters, each text once."""
    chosen: dict[str, tuple[str, str]] = {}
    for wanted in ("summary", *_ROOM):
        room = _ROOM.get(wanted, 1)
        for kind, text in sentences:
            if kind == wanted and room and len(chosen) < _MOST and key(text) not in chosen:
                chosen[key(text)] = (kind, text)
                room -= 1
    return list(chosen.values())


def _related(made: PublicCallable, doc: Docstring, numbers: dict[str, int]) -> set[int]:
    """Return the labels that See Also names, each looked up from the callable's own module outwards."""
    found: set[int] = set()
    for name in doc.see_also:
        full = re.sub(r"^np\.", "numpy.", name)
        for path in (made.name, *made.paths):
            parts = path.split(".")[:-1]
            tries = [full, *(".".join([*parts[:end], full]) for end in range(len(parts), 0, -1))]
            number = next((numbers[attempt] for attempt in tries if attempt in numbers), None)
            if number is not None:
                found.add(number)
                break
    return found


def _split(rows: list[tuple[str, set[int]]], num_labels: int) -> Split:
    ordered = sorted(rows)
    return Split(tuple(text for text, _ in ordered), Positives.from_rows([sorted(row) for _, row in ordered], num_labels))


_ABOUT = (
    "Sentences of the documentation of the packages below, as installed, with the callables they document. "
    "Made by `dexml data pydocs`; the texts are under the packages' own licences (all BSD-3-Clause)."
)
