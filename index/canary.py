"""Canary queries: texts whose answers are known since a version was published, asked again before it answers anyone.

Checksums tell a changed byte. These tell what no byte shows: a library that tokenises otherwise, an index that loads and finds
nothing, rows of another model. VERSION/canary.json holds, per text, its row and the best labels with their scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from dexml.errors import InputError
from dexml.model import DualEncoder
from index.live import Live

FILE = "canary.json"
BEST = 5  # labels of a query that are kept
ROW_TOLERANCE = 1e-2  # cosine distance of a text's row from the one it had; bfloat16 against float32 is within 1e-3
SCORE_TOLERANCE = 1e-3
FETCHED = 200  # candidates among which an approximate index must find
RECALL = 0.5  # this share of the kept labels, over all canaries


class Canary(BaseModel):
    """A text, its unit row (D), and the ids of its best labels by inner product with their `scores`, descending."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    query: str
    row: tuple[float, ...]
    labels: tuple[str, ...]
    scores: tuple[float, ...]


class _Canaries(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    canaries: tuple[Canary, ...]


def write(folder: Path, model: DualEncoder, texts: Sequence[str], ids: Sequence[str], embeddings: Tensor) -> None:
    """Write the canaries of a version about to be published, whose label rows are `embeddings` (L, D)."""
    rows = model.embed_queries(texts)[0] if texts else torch.empty(0, embeddings.shape[1])
    known = rows.any(dim=1)
    _write(folder, [text for text, good in zip(texts, known.tolist(), strict=True) if good], rows[known], ids, embeddings)


def renew(old: Path, folder: Path, ids: Sequence[str], embeddings: Tensor) -> None:
    """Write the canaries of the version `old` anew, for other labels of the same model."""
    if (old / FILE).exists():
        canaries = read(old)
        rows = torch.tensor([canary.row for canary in canaries], dtype=torch.float32).reshape(len(canaries), -1)
        _write(folder, [canary.query for canary in canaries], rows, ids, embeddings)


def read(folder: Path) -> tuple[Canary, ...]:
    """Return the canaries of a version; none for one that was published before there were any."""
    file = folder / FILE
    if not file.exists():
        return ()
    try:
        return _Canaries.model_validate_json(file.read_bytes()).canaries
    except ValidationError as error:
        raise InputError(f"bundle: {file}: {error.errors(include_url=False)[0]['msg']}") from None


def check(live: Live) -> None:
    """Ask a version's canaries, whatever was added or deleted since. Raises InputError when an answer is not what it was."""
    assert live.version is not None
    name, canaries = live.version.name, read(live.version.bundle.root)
    if not canaries or live.index.published == 0:
        return
    rows, _ = live.version.model.embed_queries([canary.query for canary in canaries])
    kept = torch.tensor([canary.row for canary in canaries], dtype=torch.float32)
    if rows.shape != kept.shape or float((rows * kept).sum(dim=1).min()) < 1 - ROW_TOLERANCE:
        raise InputError(f"bundle: {name}: its model encodes a text otherwise than when it was published")
    wanted = min(FETCHED, len(live.version.bundle.labels))
    found = live.index.search_published(kept, wanted)
    if live.index.exact:
        off = max(abs(s - t) for canary, row in zip(canaries, found.scores.tolist(), strict=True)
                  for s, t in zip(canary.scores, row, strict=False))  # fmt: skip
        if not off <= SCORE_TOLERANCE:
            raise InputError(f"bundle: {name}: its index gives a known text a score that is {off:.3g} off")
        return
    ids = live.labels.ids  # those of the version come first, and stay
    hits = [label in {ids[number] for number in row if number >= 0}
            for canary, row in zip(canaries, found.ids.tolist(), strict=True) for label in canary.labels]  # fmt: skip
    if sum(hits) < RECALL * len(hits):
        raise InputError(f"bundle: {name}: its index finds {sum(hits)} of {len(hits)} labels known to be the best")


def _write(folder: Path, texts: Sequence[str], rows: Tensor, ids: Sequence[str], embeddings: Tensor) -> None:
    best = torch.topk(rows @ embeddings.T, min(BEST, len(embeddings)), dim=1)
    canaries = tuple(
        Canary(query=text, row=tuple(row), labels=tuple(ids[number] for number in numbers), scores=tuple(scores))
        for text, row, numbers, scores in zip(texts, rows.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
    )
    (folder / FILE).write_text(_Canaries(canaries=canaries).model_dump_json(), encoding="utf-8")
