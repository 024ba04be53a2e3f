"""A retriever over a handful of hand-made labels, whose encoder reads slow, wrong and broken texts on command.

Run as a program it is a server process: `python tests/serve/stand_in.py PORT [max_inflight] [SETTING=VALUE …]`.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from dexml.types import LabelTable, TopK
from index.diversity import diversified
from index.embedded import Embedded
from index.live import LiveLabels
from index.rerankers.base import CANDIDATES
from index.retriever import Found

HOSTILE = '<img src=x onerror="document.title=1">'
LABELS = (
    ("numpy.sort", "Return a sorted copy of an array."),
    ("numpy.mean", "Compute the arithmetic mean along the specified axis."),
    ("numpy.linalg.svd", "Singular value decomposition."),
    ("scipy.optimize.minimize", "Minimization of a scalar function of one or more variables."),
    ("scipy.signal.convolve", "Convolve two N-dimensional arrays."),
    ("sklearn.cluster.KMeans", "K-Means clustering."),
    ("torch.nn.functional.softmax", "Apply a softmax function."),
    ("torch.topk", "Return the k largest elements of the given input tensor along a given dimension."),
    ("ünïcode.名前", "Ligatures, 名前 and emoji 🎉 stay whole."),
    ("hostile", HOSTILE),
)
DIMENSION = 64


def embed(text: str) -> torch.Tensor:
    """Return a unit row (D): hashed words and their letter pairs."""
    row = torch.zeros(DIMENSION, dtype=torch.float64)
    for word in text.lower().split():
        for piece in (word, *(word[i : i + 3] for i in range(len(word) - 2))):
            digest = hashlib.sha256(piece.encode()).digest()
            row[digest[0] % DIMENSION] += 1 if digest[1] % 2 else -1
    row[0] += 1e-3
    return (row / row.norm()).float()


class StandIn:
    """The methods of `Retriever`, in plain torch.

    `slow N` sleeps N ms, `broken` raises, `fatal` ends the thread, `long` is cut, `gibberish` is not known.
    """

    def __init__(self, load_s: float = 0.0, failure: Exception | None = None):
        time.sleep(load_s)
        if failure is not None:
            raise failure
        self.labels = LabelTable(tuple(i for i, _ in LABELS), tuple(t for _, t in LABELS))
        self.rows = torch.stack([embed(f"{i} {t}") for i, t in LABELS])
        self.dimension = DIMENSION
        self.exact = True
        self.temperature = 0.05
        self.remembered = 0
        self.divisible = True
        self.calibration = None
        live = SimpleNamespace(
            labels=LiveLabels(self.labels, np.zeros(len(LABELS), dtype=np.int64)), index=SimpleNamespace(gone=0, up=(1,))
        )
        manifest = SimpleNamespace(created="2026-01-01T00:00:00+00:00", sha256="0123456789abcdef" * 4)
        bundle = SimpleNamespace(root=SimpleNamespace(name="v000001"), manifest=manifest)
        folder = Path(__file__).parent  # no versions are listed: it holds none
        self.store = SimpleNamespace(
            name="v000001", live=live, bundle=bundle, root=folder, version=None, log_bytes=0, due=False
        )
        self.batches: list[int] = []
        self.seen: list[str] = []
        self.asked: dict[str, list[str]] = {"queries": [], "labels": [], "ids": []}

    def warm(self):
        """It is as fast as it will ever be."""

    def describe(self):
        return {
            "model": "stand-in@sha256:0123456789ab",
            "version": "v000001",
            "labels": len(self.labels),
            "dimension": DIMENSION,
            "index": {"name": "exact", "device": "cpu"},
            "kernels": "Reference",
            "encoder": "hashes",
            "max_tokens": 1000,
            "created": "2026-11-25T10:00:00+00:00",
            "training": {"format": "none", "rows": 1, "steps": 0, "finished": True, "commit": None},
            "temperature": self.temperature,
            "examples": ["sort an array", "cluster points", "largest elements of a tensor"],
        }

    def obey(self, texts):
        """Sleep, break and return rows as the texts say."""
        self.seen.extend(texts)
        for text in texts:
            words = text.split()
            if words[0] == "slow":
                time.sleep(int(words[1]) / 1000)
            if words[0] == "broken":
                raise RuntimeError("a secret path /etc/passwd\r\n\x1b[31mFORGED")
            if words[0] == "fatal":
                raise SystemExit
        rows = [embed(text) * (text.split()[0] != "gibberish") for text in texts]
        return torch.stack(rows) if rows else torch.zeros(0, DIMENSION)

    def embed(self, queries=(), labels=(), ids=()):
        self.batches.append(len(queries) + len(labels) + len(ids))
        for name, texts in (("queries", queries), ("labels", labels), ("ids", ids)):
            self.asked[name].extend(texts)
        rows = [self.rows[self.labels.ids.index(name)] if name in self.labels.ids else torch.zeros(DIMENSION) for name in ids]
        return Embedded(
            self.obey(queries).numpy(),
            self.obey(labels).numpy(),
            torch.stack(rows).numpy() if rows else np.zeros((0, DIMENSION), dtype=np.float32),
            tuple(1001 if text.startswith("long") else len(text.split()) for text in queries),
            tuple(1001 if text.startswith("long") else len(text.split()) for text in labels),
            tuple(dict(LABELS).get(name) for name in ids),
            1000,
            "stand-in@sha256:0123456789ab",
        )

    def search(
        self, texts, k, *, candidates=None, temperature=None, normalize="topk", diversity=None, why=False, patience=None
    ):
        start = time.perf_counter()
        queries = self.obey(texts)
        encode = time.perf_counter() - start
        found = self.search_embeddings(
            queries, k, candidates=candidates, temperature=temperature, normalize=normalize, diversity=diversity
        )
        return replace(
            found,
            seconds={"encode": encode, **found.seconds},
            tokens=tuple(len(text.split()) for text in texts),
            truncated=tuple(text.startswith("long") for text in texts),
        )

    def search_embeddings(
        self, queries, k, *, candidates=None, temperature=None, normalize="topk", diversity=None, why=False, patience=None
    ):
        self.batches.append(len(queries))
        start = time.perf_counter()
        scores = queries @ self.rows.T
        k = min(k, len(self.labels))
        wanted = max(k, min(CANDIDATES if candidates is None else candidates, len(self.labels)))
        order = torch.sort(scores, dim=1, descending=True, stable=True)
        temperature = temperature or self.temperature
        among = scores if normalize == "all" else order.values[:, :wanted]
        topk, ranks = TopK(order.indices, order.values, torch.logsumexp(among / temperature, dim=1)).first(wanted), None
        if diversity is not None:
            hidden = np.array([row for row, name in enumerate(self.labels.ids) if name in diversity.hidden], dtype=np.int64)
            topk, ranks = diversified(topk, k, diversity, self.rows.__getitem__, hidden, self.temperature)
        known = queries.any(dim=1)
        unknown = ~known[:, None]
        topk = TopK(topk.ids.masked_fill(unknown, -1), topk.scores.masked_fill(unknown, -math.inf), topk.log_z).first(k)
        return Found(
            topk=topk,
            normalizer=normalize,
            temperature=temperature,
            exact=True,
            labels=self.labels,
            size=len(self.labels),
            version="v000001",
            model="stand-in@sha256:0123456789ab",
            seconds={"retrieve": time.perf_counter() - start, "rescore": 0.0},
            known=tuple(known.tolist()),
            rescored=(wanted,) * len(queries),
            ranks=ranks,
        )


def serve(port: int, max_inflight: int = 256, load_s: float = 0.0, **more: Any) -> int:
    from serve import wsgi
    from serve.settings import Settings

    settings = Settings(port=port, max_inflight=max_inflight, **more)
    admin = None if settings.admin_port is None else wsgi.listen_admin(settings)
    return wsgi.run(settings, wsgi.listen(settings), lambda: StandIn(load_s), admin)


if __name__ == "__main__":
    numbers = [int(value) for value in sys.argv[1:] if "=" not in value]
    sys.exit(serve(*numbers, **dict(value.split("=", 1) for value in sys.argv[1:] if "=" in value)))
