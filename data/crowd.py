"""Annotators' answers in a CSV, made a data set: two labels of each item as soft positives."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.lines import complaint, excerpt, id_complaint, read_lines, staged
from dexml.crowd import TopTwo, top_two
from dexml.errors import InputError
from dexml.types import Int64Array

COLUMNS = ("worker", "item", "label")


@dataclass(frozen=True, eq=False)
class Answers:
    """Label numbers int64 (workers, items), −1 where there is none, and the names behind them, in order of appearance."""

    numbers: Int64Array
    workers: tuple[str, ...]
    items: tuple[str, ...]
    labels: tuple[str, ...]


def read_answers(path: Path) -> Answers:
    """Return the answers in the CSV `path`, whose header names the columns worker, item and label; others are left alone.

    Raises InputError with the line for a cell that is empty or no text, and for a second answer of a worker to an item.
    """
    names: tuple[dict[str, int], dict[str, int], dict[str, int]] = ({}, {}, {})
    given: dict[tuple[int, int], int] = {}
    for line, cells in _cells(path):
        worker, item, label = (known.setdefault(cell, len(known)) for known, cell in zip(names, cells, strict=True))
        if (worker, item) in given:
            raise InputError(f"{path}, line {line}: worker {excerpt(cells[0])} answers {excerpt(cells[1])} again")
        given[worker, item] = label
    workers, items, labels = (tuple(known) for known in names)
    if not given:
        raise InputError(f"{path}: there are no answers")
    numbers = np.full((len(workers), len(items)), -1, dtype=np.int64)
    pairs = np.array(list(given), dtype=np.int64)
    numbers[pairs[:, 0], pairs[:, 1]] = list(given.values())
    return Answers(numbers, workers, items, labels)


def write_crowd(answers: Answers, folder: Path) -> TopTwo:
    """Write labels.jsonl, train.jsonl and workers.csv into `folder`, and return the labels found.

    A row of train.jsonl is {"text": the item, "labels": [most probable, most confusing], "weights": [q, 1 − q]}; workers.csv
    says how reliable each worker is.
    """
    found = top_two(answers.numbers, len(answers.labels))
    rows = []
    for item, first, second, q in zip(
        answers.items, found.first.tolist(), found.second.tolist(), found.probability.tolist(), strict=True
    ):
        labels, weights = [answers.labels[first], answers.labels[second]], [round(q, 4), round(1 - q, 4)]
        rows.append(json.dumps({"text": item, "labels": labels, "weights": weights}, ensure_ascii=False))
    known = [json.dumps({"id": name, "text": name}, ensure_ascii=False) for name in answers.labels]
    with staged() as sibling:
        for name, lines in (("labels", known), ("train", rows)):
            sibling(folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        with sibling(folder / "workers.csv").open("w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(["worker", "answers", "reliability"])
            counts = (answers.numbers >= 0).sum(axis=1).tolist()
            for worker, count, reliable in zip(answers.workers, counts, found.reliability.tolist(), strict=True):
                table.writerow([worker, count, f"{reliable:.3f}"])
    return found


def _cells(path: Path) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """Yield the line and the three cells of each answer."""
    reader = csv.reader((f"{line}\n" for line in read_lines(path)), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if missing := [name for name in COLUMNS if header.count(name) != 1]:
            raise InputError(f"{path}, line 1: the header must name {', '.join(COLUMNS)}, each once; see {missing[0]!r}")
        worker, item, label = (header.index(name) for name in COLUMNS)
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(f"{path}, line {reader.line_num}: {len(row)} cells, but the header has {len(header)}")
            for cell, fault in ((row[worker], complaint), (row[item], complaint), (row[label], id_complaint)):
                if said := fault(cell):
                    raise InputError(f"{path}, line {reader.line_num}: {said}")
            yield reader.line_num, (row[worker], row[item], row[label])
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: no CSV ({error})") from None


__all__ = ["Answers", "read_answers", "write_crowd"]
