"""A CSV of answers becomes a data set that reads back; every malformed line is told."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from data import open_format
from data.crowd import read_answers, write_crowd
from dexml.__main__ import main
from dexml.errors import InputError


def made(path: Path) -> list[tuple[str, str, str]]:
    """Write answers of 8 workers who are mostly right and 2 who guess, to 30 items, and return them."""
    random = np.random.default_rng(0)
    names = ["red", "green", "blue, dark", "black"]
    rows = []
    for worker in range(10):
        for item in range(30):
            if random.random() < 0.8:
                right = random.random() < (0.9 if worker < 8 else 0.25)
                label = names[item % 4] if right else names[int(random.integers(0, 4))]
                rows.append((f"w{worker}", f'the "{item}" item', label))
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["label", "seconds", "worker", "item"])
        table.writerows([label, 3, worker, item] for worker, item, label in rows)
    return rows


def test_a_csv_becomes_a_data_set(tmp_path: Path, capsys):
    rows = made(tmp_path / "answers.csv")
    answers = read_answers(tmp_path / "answers.csv")
    assert (answers.numbers >= 0).sum() == len(rows)
    for worker, item, label in rows[:20]:
        number = answers.numbers[answers.workers.index(worker), answers.items.index(item)]
        assert answers.labels[number] == label
    with pytest.raises(SystemExit) as ended:
        main(["data", "crowd", str(tmp_path / "answers.csv"), str(tmp_path / "out")])
    assert not ended.value.code
    assert "30 items, 4 labels, 10 workers" in capsys.readouterr().out
    files = open_format(tmp_path / "out")
    labels, split = files.labels(), files.read("train")
    assert set(labels.ids) == {"red", "green", "blue, dark", "black"}
    lines = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    names = ["red", "green", "blue, dark", "black"]
    right = [line["labels"][0] == names[int(line["text"].split('"')[1]) % 4] for line in lines]
    assert len(split) == 30 and sum(right) >= 29
    assert all(len(line["labels"]) == 2 and line["weights"][0] > 0.5 for line in lines)
    assert all(sum(line["weights"]) == pytest.approx(1, abs=1e-3) for line in lines)
    table = list(csv.DictReader((tmp_path / "out/workers.csv").read_text().splitlines()))
    assert min(float(row["reliability"]) for row in table[:8]) > max(float(row["reliability"]) for row in table[8:])


def test_soft_positives_carry_the_probabilities(tmp_path: Path):
    made(tmp_path / "answers.csv")
    answers = read_answers(tmp_path / "answers.csv")
    found = write_crowd(answers, tmp_path / "out")
    positives = found.positives(4)
    assert positives.weights is not None
    for item in range(30):
        weights = dict(zip(positives.row(item).tolist(), positives.weights[2 * item : 2 * item + 2].tolist(), strict=True))
        assert weights[int(found.first[item])] == pytest.approx(found.probability[item])
        assert weights[int(found.second[item])] == pytest.approx(1 - found.probability[item])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the header must name"),
        ("worker,item\n", "line 1: the header must name"),
        ("worker,item,label,label\n", "line 1: the header must name"),
        ("worker,item,label\n", "there are no answers"),
        ("worker,item,label\na,b\n", "line 2: 2 cells, but the header has 3"),
        ("worker,item,label\na,b,c\na,,c\n", "line 3: "),
        ("worker,item,label\na,b,c\n\na,b,d\n", "line 4: worker 'a' answers 'b' again"),
        ('worker,item,label\na,"b"x,c\n', "line 2: no CSV"),
        ("worker,item,label\na,b,c\nb,b,d\n", "2 labels; two of them"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, said: str):
    (tmp_path / "answers.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        write_crowd(read_answers(tmp_path / "answers.csv"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
