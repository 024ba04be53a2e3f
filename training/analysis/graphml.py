"""Graphs of labels as GraphML (graphml.graphdrawing.org): what Gephi, yEd, networkx and igraph open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import scipy.sparse as sp

from dexml.analysis.dags import Float64Array
from dexml.errors import InputError

SPACE = "http://graphml.graphdrawing.org/xmlns"
KEYS = (("text", "node", "string"), ("rows", "node", "long"), ("weight", "edge", "double"))


def written(
    weights: Float64Array, ids: Sequence[str], texts: Sequence[str], rows: Sequence[int], facts: Mapping[str, str]
) -> str:
    """Return a directed graph as XML: nodes named by label ids, with their texts and rows; edges i → j where W_ij is not 0."""
    ElementTree.register_namespace("", SPACE)
    root = ElementTree.Element(f"{{{SPACE}}}graphml")
    for name, kind, numbers in (*KEYS, *((name, "graph", "string") for name in facts)):
        made = {"id": name, "for": kind, "attr.name": name, "attr.type": numbers}
        ElementTree.SubElement(root, f"{{{SPACE}}}key", made)
    graph = ElementTree.SubElement(root, f"{{{SPACE}}}graph", {"edgedefault": "directed"})
    for name, value in facts.items():
        _data(graph, name, value)
    for label, text, count in zip(ids, texts, rows, strict=True):
        node = ElementTree.SubElement(graph, f"{{{SPACE}}}node", {"id": label})
        _data(node, "text", _printable(text))
        _data(node, "rows", str(int(count)))
    for one, other in np.argwhere(weights != 0).tolist():
        edge = ElementTree.SubElement(graph, f"{{{SPACE}}}edge", {"source": ids[one], "target": ids[other]})
        _data(edge, "weight", repr(float(weights[one, other])))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def neighbours(path: Path, ids: Sequence[str]) -> sp.csr_array:
    """Return which labels (L, L) an edge of the graph at `path` joins, either way; its nodes are named by label ids.

    Raises InputError where the file is no GraphML, and for an edge of a label that there is not.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise InputError(f"{path}: a GraphML file needs no document type")
        root = ElementTree.fromstring(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: not XML: {error}") from None
    if root.tag != f"{{{SPACE}}}graphml":
        raise InputError(f"{path}: not GraphML: its root is {root.tag!r}")
    places = {label: number for number, label in enumerate(ids)}
    pairs = []
    for edge in root.iter(f"{{{SPACE}}}edge"):
        ends = [edge.get("source", ""), edge.get("target", "")]
        if unknown := [end for end in ends if end not in places]:
            raise InputError(f"{path}: the data set has no label {unknown[0]!r}")
        pairs.append([places[end] for end in ends])
    there = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    ones = np.ones(len(there), dtype=np.float32)
    joined = sp.csr_array((ones, (there[:, 0], there[:, 1])), shape=(len(ids), len(ids)))
    return sp.csr_array(joined + joined.T)


def _data(of: ElementTree.Element, key: str, value: str) -> None:
    ElementTree.SubElement(of, f"{{{SPACE}}}data", {"key": key}).text = value


def _printable(text: str) -> str:
    """Return a text without what XML 1.0 cannot hold."""
    return "".join(sign for sign in text if sign in "\t\n" or " " <= sign < "\ud800" or "\ue000" <= sign not in "\ufffe\uffff")
