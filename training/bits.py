"""What label rows are worth by what they take: P@k against the bits of a label, over dimensions and bits a number.

Rows are projected onto their principal axes, turned at random, so that no dimension is larger than the others, and rounded as
`dexml.quantization` says; queries keep their precision. Nothing is trained: what a student trained for its bits is worth stands
beside it (`whole`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dexml import metrics
from dexml.kernels import choose
from dexml.quantization import STEPS, rounded
from dexml.towers.compact import principal_axes
from dexml.types import Int64Array, Split
from index.retriever import Retriever
from training import page
from training.chart import Series, line_chart

DEPTH = 100
FIGURES = ("P@1", "P@5", "R@100")
WIDTHS = (32, 16, *sorted(STEPS, reverse=True))  # float32, float16, and rounded
STEP = 32  # bits of a row's step


@dataclass(frozen=True)
class Point:
    """Rows of `dimension` numbers of `bits` each, the name of whose they are, and the figures in percent."""

    name: str
    dimension: int
    bits: int
    figures: dict[str, float]

    @property
    def total(self) -> int:
        """The bits of a label, a rounded row's step included."""
        return self.dimension * self.bits + (STEP if self.bits < 16 else 0)

    def as_json(self) -> dict[str, Any]:
        """Return the point in one flat document."""
        sizes = {"dimension": self.dimension, "bits": self.bits, "bits_a_label": self.total}
        return {"name": self.name, **sizes, **self.figures}


def points(
    retriever: Retriever, numbers: Int64Array, split: Split, dimensions: Sequence[int], bits: Sequence[int]
) -> Iterator[Point]:
    """Yield a point for each of `dimensions` and `bits`; `numbers` (L) are the data set's of the bundle's labels, −1 = none."""
    rows = retriever.bundle.embeddings
    queries, _ = retriever.model.embed_queries(split.texts)
    draw = torch.Generator().manual_seed(0)
    name = retriever.bundle.manifest.name
    for dimension in dimensions:
        turned, _ = torch.linalg.qr(torch.randn(dimension, dimension, generator=draw))
        axes = principal_axes(rows, dimension) @ turned
        projected, asked = rows @ axes, queries @ axes
        for each in bits:
            yield Point(name, dimension, each, _figures(_cut(projected, each), asked, numbers, split))


def whole(retriever: Retriever, numbers: Int64Array, split: Split) -> Point:
    """Return the point of a bundle as it is, at the bits that its label rows were trained in."""
    queries, _ = retriever.model.embed_queries(split.texts)
    manifest = retriever.bundle.manifest
    bits = manifest.training.config.get("distill", {}).get("bits") or 32
    return Point(manifest.name, manifest.dimension, bits, _figures(retriever.bundle.embeddings, queries, numbers, split))


def front(found: Sequence[Point], figure: str = "P@1") -> list[Point]:
    """Return the points that none of as few bits is better than, the smallest first."""
    best, kept = -1.0, []
    for point in sorted(found, key=lambda point: (point.total, -point.figures[figure])):
        if point.figures[figure] > best:
            best = point.figures[figure]
            kept.append(point)
    return kept


def fewest(found: Sequence[Point], within: float) -> Point:
    """Return the point of the fewest bits that loses no more than `within` points of P@1 and of P@5 to the one of the most."""
    whole = max(found, key=lambda point: point.total)
    near = [point for point in found if all(whole.figures[of] - point.figures[of] <= within for of in ("P@1", "P@5"))]
    return min(near, key=lambda point: point.total)


def document(name: str, split: str, labels: int, found: Sequence[Point], others: Sequence[Point]) -> str:
    """Return the page: a chart for each figure, and the table."""
    charts = [page.card(figure, _chart(figure, found, others)) for figure in FIGURES]
    best = {id(point) for point in front([*found, *others])}
    heads = ["rows", "numbers", "bits a number", "bits a label", "all labels, MB", *FIGURES, "front"]
    table = [
        [
            point.name,
            point.dimension,
            point.bits,
            f"{point.total:,}",
            f"{point.total * labels / 8e6:,.2f}",
            *(f"{point.figures[figure]:.2f}" for figure in FIGURES),
            "•" if id(point) in best else "",
        ]
        for point in sorted([*found, *others], key=lambda point: -point.total)
    ]
    chosen = [
        (f"{fewest(found, within).total:,}", f"bits a label, within {within} point{'s' * (within != 1)} of all")
        for within in (0.5, 1.0)
    ]
    note = "On the front, no other rows of as few bits have a higher P@1. A rounded row has 32 bits more, its step."
    group = page.Group("Every size", note, [page.numbers("Percent, by size", heads, table, level=3)])
    return page.document(f"{name}: bits", f"{split} · {labels:,} labels", chosen, [page.charts(charts), group])


def _chart(figure: str, found: Sequence[Point], others: Sequence[Point]) -> str:
    lines = [
        Series(
            f"{bits} bits",
            sorted((float(point.total), point.figures[figure]) for point in found if point.bits == bits),
            marked=True,
        )
        for bits in sorted({point.bits for point in found}, reverse=True)
    ]
    lines.append(Series("other runs", sorted((float(point.total), point.figures[figure]) for point in others), marked=True))
    return line_chart(f"{figure}, percent", "bits of a label", lines, logarithmic_x=True)


def _cut(rows: Tensor, bits: int) -> Tensor:
    if bits == 32:
        return rows
    return rows.half().float() if bits == 16 else rounded(rows, bits)


def _figures(rows: Tensor, queries: Tensor, numbers: Int64Array, split: Split) -> dict[str, float]:
    kernels = choose()
    spare = 0 if split.excluded is None else int(np.diff(split.excluded.indptr).max(initial=0))
    found = kernels.scan(queries, kernels.prepare(rows, copy="none"), min(len(rows), DEPTH + spare), 1.0).ids.numpy()
    ids = np.where(found < 0, -1, numbers[found])
    if split.excluded is not None:
        gone = metrics.hits(ids, split.excluded)
        order = np.argsort(gone, axis=1, kind="stable")
        ids = np.take_along_axis(np.where(gone, -1, ids), order, axis=1)
    ranked = np.full((len(ids), DEPTH), -1, dtype=np.int64)
    ranked[:, : ids.shape[1]] = ids[:, :DEPTH]
    return {
        "P@1": metrics.precision_at(ranked, split.positives, 1),
        "P@5": metrics.precision_at(ranked, split.positives, 5),
        "R@100": metrics.recall_at(ranked, split.positives, DEPTH),
    }
