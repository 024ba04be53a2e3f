"""`dexml report bits`: figures of the rows it says, on a page and in JSON; and the report of a run is where it was."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data import open_format
from dexml.quantization import STEPS
from index.retriever import Retriever
from training.bits import Point, fewest, front, points, whole


def test_full_precision_is_what_the_bundle_answers_and_few_bits_are_less(tiny_bundle: Path, tiny_data: Path):
    retriever, split = Retriever.open(tiny_bundle), open_format(tiny_data).read("train")
    own = whole(retriever, np.arange(10), split)
    found = list(points(retriever, np.arange(10), split, [32, 2], [32, 16, 8, 2]))
    assert [(point.dimension, point.bits) for point in found] == [(d, b) for d in (32, 2) for b in (32, 16, 8, 2)]
    assert found[0].figures == own.figures, "a rotation changes no answer"
    assert [point.total for point in found[:4]] == [1024, 512, 256 + 32, 64 + 32]
    assert found[7].figures["P@1"] < found[4].figures["P@1"] < found[0].figures["P@1"]
    none = list(points(retriever, np.full(10, -1), split, [32], [32]))
    assert none[0].figures["P@1"] == 0, "labels that the data set does not have are no hits"


def test_the_front_and_the_fewest():
    sizes = ((64, 8, 80.0), (64, 4, 79.6), (32, 8, 79.0), (32, 4, 70.0), (16, 8, 75.0), (64, 32, 80.0))
    found = [Point("rows", dimension, bits, {"P@1": value, "P@5": value / 2}) for dimension, bits, value in sizes]
    assert [(point.dimension, point.bits) for point in front(found)] == [(16, 8), (64, 4), (64, 8)]
    assert [(fewest(found, within).dimension, fewest(found, within).bits) for within in (0, 0.5, 5)] == [
        (64, 8),
        (64, 4),
        (16, 8),
    ]


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.charts, self.fetched = 0, list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.charts += tag == "svg"
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")]


def test_the_command_leaves_a_page_a_table_and_every_point(run, tiny_bundle: Path, tmp_path: Path):
    page, output = tmp_path / "bits.html", tmp_path / "bits.json"
    asked = ("--dimensions", "32,8", "--bits", "32,4", "--with", tiny_bundle, "--page", page, "--json", output)
    told = run("report", "bits", tiny_bundle, *asked)
    assert "within 0.5 of P@1 and P@5 of the whole rows" in told and str(page) in told
    written = json.loads(output.read_text())
    assert [(point["dimension"], point["bits_a_label"]) for point in written["points"]] == [
        (32, 1024),
        (32, 160),
        (8, 256),
        (8, 64),
    ]
    assert written["with"][0]["P@1"] == written["points"][0]["P@1"] == 100
    shown = Tags(page.read_text(encoding="utf-8"))
    assert shown.charts == 3 and set(shown.fetched) <= {"data:,"}


def test_the_page_lies_beside_the_run_and_the_old_report_is_where_it_was(run, tiny_bundle: Path):
    run("report", "bits", tiny_bundle.parent, "--bits", "8", "--dimensions", "4")
    assert (tiny_bundle.parent / "bits.html").is_file()
    assert "report.html" in run("report", tiny_bundle.parent)
    assert "report.html" in run("report", "run", tiny_bundle.parent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bits", "7"), f"--bits: 7 is none of {', '.join(map(str, sorted([*STEPS, 16, 32])))}"),
        (("--bits", "eight"), "whole numbers from 2 on"),
        (("--dimensions", "0"), "whole numbers from 1 on"),
        (("--dimensions", "33"), "--dimensions: the rows have 32, 33 is more"),
        (("--split", "nope"), "nope"),
    ],
)
def test_what_cannot_be_is_told(run, tiny_bundle: Path, arguments: tuple[str, ...], message: str):
    assert message in run("report", "bits", tiny_bundle, *arguments, fails=True)
