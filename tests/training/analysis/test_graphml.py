"""A graph of labels written, read by another library, and read back as neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dexml.errors import InputError
from training.analysis.graphml import neighbours, written

IDS = ["a", "b & <c>", "d"]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    weights = np.zeros((3, 3))
    weights[0, 1], weights[2, 1] = 0.5, -1.25
    path = tmp_path / "labels.graphml"
    path.write_text(written(weights, IDS, ["one\x00", 'two "x"', "drei ü"], [3, 2, 1], {"loss": "squared"}), encoding="utf-8")
    return path


def test_networkx_reads_what_is_written(graph: Path):
    networkx = pytest.importorskip("networkx")
    read = networkx.read_graphml(graph)
    assert set(read.nodes) == set(IDS) and read.is_directed()
    assert read.nodes["b & <c>"] == {"text": 'two "x"', "rows": 2} and read.nodes["a"]["text"] == "one"
    assert read.edges["a", "b & <c>"]["weight"] == 0.5 and read.edges["d", "b & <c>"]["weight"] == -1.25
    assert read.graph["loss"] == "squared"


def test_edges_join_labels_either_way(graph: Path):
    assert (neighbours(graph, IDS).toarray() != 0).tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    with pytest.raises(InputError, match="no label 'd'"):
        neighbours(graph, IDS[:2])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<graphml>", "not XML"),
        ("<other/>", "not GraphML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><x/>', "no document type"),
    ],
)
def test_what_is_no_graph_is_refused(tmp_path: Path, content: str, said: str):
    path = tmp_path / "x.graphml"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        neighbours(path, IDS)
    with pytest.raises(InputError, match="cannot be read"):
        neighbours(tmp_path / "none.graphml", IDS)
