"""The embedded demo set: sentences of the installed scientific packages' documentation, to be answered with the callable.

Labels are public callables. Queries are sentences of their docstrings, the callable's own name masked by "…". A sentence's
positives are the callable and what its *See Also* names; a summary's is the callable alone, so that it ranks before its
relatives. The same sentence in a few docstrings is one query with the union of their positives; in many it is boilerplate.

Of a share of the callables training sees nothing: they are in no positives of "train". The rows of "unseen" are their
sentences, and the positives there are only such callables; relatives that training has seen are true answers too, so these
stand under "excluded" and count neither as hits nor as misses. The rows of "test" are held-out sentences of callables that
training knows, with all of their positives: a few of these are relatives that training has not seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from data.callables import PACKAGES, PublicCallable, collect, modules
from data.docstrings import Docstring, parse
from data.jsonl import JsonLines
from data.lines import staged
from dexml.errors import InputError
from dexml.types import LabelTable, Positives, Split

RECIPE = 2  # raise it when the same packages give another data set
RECORD = "pydocs.json"
MASK = "…"
UNSEEN = 0.08  # share of the callables that training never sees
HELD_OUT = 0.08  # share of the sentences of seen callables that go to test

# Sentences taken of each kind; a callable has at most MOST. Descriptions of parameters are many and say little.
_ROOM = {"extended": 8, "notes": 6, "returns": 2, "examples": 3, "parameters": 8}
_MOST = 20
_OWNERS = 5  # a sentence of more callables than this is boilerplate
_WORDS = range(5, 51)
_DULL = re.compile(
    r"(?:see |read more|refer to|for (?:more|further|full|a full|details)|default|deprecated|new in version|changed in|"
    r"added in|alias (?:for|of)|this is an alias|note that this function is an alias|please see|as an instance of)",
    re.IGNORECASE,
)
# A sentence that breaks off where a formula, a citation or an example followed.
_CUT = re.compile(r"\b(?:an?|and|are|as|by|for|follows|from|in|is|like|of|or|that|the|this|to|using|via|with)\W*$", re.I)
_ALIAS = re.compile(r"(?:alias (?:for|of)|this is an alias|see |in-place version|performs the same operation)", re.I)
_READING = 0.5  # share of the time that importing the packages takes, for the progress bar
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}
_ABOUT = (
    "Sentences of the documentation of the packages below, as installed, with the callables they document. "
    "Made by `dexml data pydocs`; the texts are under the packages' own licences (all BSD-3-Clause)."
)


@dataclass
class _Row:
    """One query: its text, the callables whose docstrings say it, its positives, and whether it is someone's summary."""

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
    and the share that is done; `names` limits the modules, for tests. Raises InputError when nothing documented is there.
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
            progress(module, _READING * read / total)
        read += 1

    found = [made for package, those in chosen.items() for made in collect(package, those, tell)]
    if progress is not None:
        progress("sorting sentences", _READING)
    labels, splits = assemble(found, seed)
    counts = {"labels": len(labels), **{name: len(split) for name, split in splits.items()}}
    summary = {"about": _ABOUT, **basis, "counts": counts}
    # First a record that vouches for nothing: a build that is broken off leaves a folder that the next one may take.
    _write_record(folder, {"about": _ABOUT})
    JsonLines.write(folder, labels, splits)
    _write_record(folder, summary)
    return summary


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    with staged() as sibling:
        sibling(folder / RECORD).write_text(f"{json.dumps(record, indent=2)}\n", encoding="utf-8")


def assemble(found: Sequence[PublicCallable], seed: int) -> tuple[LabelTable, dict[str, Split]]:
    """Return the labels, sorted by name, and the splits "train", "test" and "unseen" of the given callables."""
    parsed = {made.name: parse(made.doc) for made in found}
    kept = sorted((made for made in found if _speaks(parsed[made.name])), key=lambda made: made.name)
    if not kept:
        raise InputError("pydocs: the packages have no docstrings; does Python run with -OO?")
    rows = _rows(kept, parsed)
    labels = LabelTable(
        tuple(made.name for made in kept), tuple(label_text(made.name, parsed[made.name].summary) for made in kept)
    )
    generator = np.random.default_rng(seed)
    unseen = set(np.flatnonzero(generator.random(len(kept)) < UNSEEN).tolist())
    draws = generator.random(len(rows))
    known: set[int] = set()  # callables that training has a sentence of
    sides: dict[str, list[_Row]] = {"train": [], "test": [], "unseen": []}
    # Summaries first: they are never held out, and with one in training all other sentences of a callable may be.
    for place in sorted(range(len(rows)), key=lambda place: not rows[place].summary):
        row = rows[place]
        if row.owners <= unseen:
            if not row.summary:  # the label's text quotes it: finding it again would prove nothing
                sides["unseen"].append(row)
        elif draws[place] < HELD_OUT and not row.summary and row.owners <= known:
            sides["test"].append(row)
        else:
            known |= row.owners - unseen
            row.positives -= unseen
            sides["train"].append(row)
    trained = {label for row in sides["train"] for label in row.positives}
    splits = {name: _split(side, len(labels), trained if name == "unseen" else None) for name, side in sides.items()}
    return labels, splits


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
    return _mentions(name.rpartition(".")[2]).sub(MASK, text)


@cache
def _mentions(own: str) -> re.Pattern[str]:
    return re.compile(rf"(?:\b[A-Za-z_]\w*\.)*(?<!\w){re.escape(own)}(?!\w)(?:\(\))?", re.IGNORECASE)


def key(text: str) -> str:
    """Return what makes two sentences the same query: their words, in any case and punctuation."""
    return " ".join(re.findall(rf"\w+|{MASK}", text.casefold()))


def _modules(package: str, names: Sequence[str] | None) -> list[str]:
    return [name for name in modules(package) if names is None or name in names]


def _speaks(doc: Docstring) -> bool:
    return len(doc.summary.split()) > 1 and not _ALIAS.match(doc.summary)


def _rows(kept: Sequence[PublicCallable], parsed: dict[str, Docstring]) -> list[_Row]:
    """Return the queries of all callables, boilerplate removed and equal ones merged, sorted by their words."""
    said = [[("summary", doc.summary), *doc.sentences] for doc in (parsed[made.name] for made in kept)]
    merged = _merge([[text for _, text in sentences] for sentences in said], [made.name for made in kept])
    numbers = {path: number for number, made in enumerate(kept) for path in made.paths}
    taken: dict[int, _Row] = {}
    for number, made in enumerate(kept):
        related = {number, *_related(made, parsed[made.name], numbers)}
        known = [(kind, merged[key(text)]) for kind, text in said[number] if key(text) in merged]
        for kind, row in _capped(known):
            row.positives |= {number} if kind == "summary" else related
            row.summary |= kind == "summary"
            taken[id(row)] = row
    for row in taken.values():
        row.positives |= row.owners  # also one whose room was full: the sentence would answer for it just as well
    return sorted(taken.values(), key=lambda row: key(row.text))


def _merge(said: Sequence[Sequence[str]], names: Sequence[str]) -> dict[str, _Row]:
    """Return the row of each sentence, by `key` of the sentence as it stands in the docstrings.

    A sentence that several callables share is one row with the names of all of them masked, so that it cannot stand in
    train under one name and in test under another. Sentences that masking makes equal are one row as well.
    """
    owners: dict[str, tuple[str, set[int]]] = {}
    for number, sentences in enumerate(said):
        for text in sentences:
            owners.setdefault(key(text), (text.removesuffix(":"), set()))[1].add(number)
    rows: dict[str, _Row] = {}
    found: dict[str, _Row] = {}
    for raw, (text, those) in owners.items():
        if len(those) <= _OWNERS:
            for number in sorted(those):
                text = mask(text, names[number])
            found[raw] = rows.setdefault(key(text), _Row(text))
            found[raw].owners |= those
    return {raw: row for raw, row in found.items() if len(row.owners) <= _OWNERS}


def _plain(text: str, words: range) -> bool:
    """Return whether a sentence reads as English: enough words, mostly letters, no address, no version note."""
    count = sum(any(letter.isalpha() for letter in word) for word in text.split())
    letters = sum(letter.isalpha() or letter in f" {MASK}" for letter in text)
    return (
        count in words
        and letters >= 0.85 * len(text)
        and "http" not in text
        and text.count("=") < 2
        and (words is not _WORDS or not (_DULL.match(text) or _CUT.search(text)))
    )


def _capped(rows: list[tuple[str, _Row]]) -> list[tuple[str, _Row]]:
    """Return at most MOST of a callable's (kind, row), prose before parameters, each row once."""
    chosen: dict[int, tuple[str, _Row]] = {}
    for wanted in ("summary", *_ROOM):
        room = _ROOM.get(wanted, 1)
        words = range(2, _WORDS.stop) if wanted == "summary" else _WORDS
        for kind, row in rows:
            if room and kind == wanted and id(row) not in chosen and len(chosen) < _MOST and _plain(row.text, words):
                chosen[id(row)] = (kind, row)
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


def _split(rows: list[_Row], num_labels: int, excluded: set[int] | None = None) -> Split:
    """Return the rows by text; positives in `excluded` leave them, for `Split.excluded`."""
    ordered = sorted(rows, key=lambda row: row.text)

    def those(keep: Callable[[set[int]], set[int]]) -> Positives:
        return Positives.from_rows([sorted(keep(row.positives)) for row in ordered], num_labels)

    texts = tuple(row.text for row in ordered)
    if excluded is None:
        return Split(texts, those(lambda positives: positives))
    return Split(texts, those(lambda positives: positives - excluded), those(lambda positives: positives & excluded))
