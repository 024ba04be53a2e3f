"""What flows through dexml: positives, label tables, splits, features and answers, each checked where it is made.

N examples, B batch, L labels, D dimension, K candidates. Row numbers are label numbers inside; string ids exist at the edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dexml.errors import InputError
from dexml.positives import Float32Array as Float32Array
from dexml.positives import Int64Array as Int64Array
from dexml.positives import Positives as Positives


@dataclass(frozen=True)
class LabelTable:
    """The labels in row order: string `ids` (L, unique) and the `texts` (L) an encoder reads."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.texts):
            raise InputError(f"labels: {len(self.ids)} ids but {len(self.texts)} texts")
        if len(set(self.ids)) != len(self.ids):
            seen: set[str] = set()
            double = next(i for i in self.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise InputError(f"labels: the id {double!r} appears twice")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Split:
    """Query `texts` (N) with their `positives` (N, L); `excluded` (N, L) pairs leave the predictions before top-k."""

    texts: tuple[str, ...]
    positives: Positives
    excluded: Positives | None = None

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.positives):
            raise InputError(f"split: {len(self.texts)} texts but {len(self.positives)} rows of labels")
        if self.excluded is not None and (
            len(self.excluded) != len(self.texts) or self.excluded.num_labels != self.positives.num_labels
        ):
            raise InputError("split: the excluded pairs do not have the shape of the positives")

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> Split:
        """Return the chosen rows, in the order asked for."""
        excluded = None if self.excluded is None else self.excluded.take(rows)
        return Split(tuple(self.texts[int(row)] for row in rows), self.positives.take(rows), excluded)


@dataclass(frozen=True, eq=False)
class Bag:
    """Sparse feature rows for `embedding_bag`: `offsets` int64 (N+1), `features` int64 (nnz), `weights` float32 (nnz)."""

    offsets: Tensor
    features: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: Tensor) -> Bag:
        """Return the chosen rows, in the order asked for."""
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        places = torch.repeat_interleave(starts - offsets[:-1], lengths) + torch.arange(int(offsets[-1]))
        return Bag(offsets, self.features[places], self.weights[places])

    def to(self, device: torch.device) -> Bag:
        """Return the bag on a device."""
        return Bag(self.offsets.to(device), self.features.to(device), self.weights.to(device))


@dataclass(frozen=True, eq=False)
class Features:
    """What an encoder says about N texts: `dense` float32 (N, M), a sparse `bag`, or both; towers make unit rows of it."""

    dense: Tensor | None = None
    bag: Bag | None = None
    tokens: Tensor | None = None
    """int64 (N): how many tokens each text has before any cut."""

    def __post_init__(self) -> None:
        if self.dense is None and self.bag is None:
            raise ValueError("features need a dense part or a bag")
        # By shape: `len` would make numbers of the sizes that an exported graph leaves open (dexml/onnx_graph.py).
        if self.dense is not None and self.bag is not None and self.dense.shape[0] != self.bag.offsets.shape[0] - 1:
            raise ValueError(f"features: {len(self.dense)} dense rows but {len(self.bag)} bags")

    def __len__(self) -> int:
        return len(self.dense) if self.dense is not None else len(self.bag)  # type: ignore[arg-type]

    def take(self, rows: Tensor) -> Features:
        """Return the chosen rows, in the order asked for."""
        return Features(
            None if self.dense is None else self.dense[rows],
            None if self.bag is None else self.bag.take(rows),
            None if self.tokens is None else self.tokens[rows],
        )

    def to(self, device: torch.device) -> Features:
        """Return the features on a device; the token counts stay where they are."""
        dense = None if self.dense is None else self.dense.to(device)
        return Features(dense, None if self.bag is None else self.bag.to(device), self.tokens)


@dataclass(frozen=True, eq=False)
class TopK:
    """Answers for B queries: `ids` int64 (B, K), `scores` float32 (B, K), `log_z` float32 (B) or None.

    Scores are inner products ⟨x, y⟩, descending, equal ones by ascending id; a missing answer is id −1 with score −inf.
    `log_z` is log Σ_j e^{⟨x, y_j⟩/τ} over whatever the maker normalises by: all labels (`scan`) or the candidates (`rescore`).
    """

    ids: Tensor
    scores: Tensor
    log_z: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ids.shape != self.scores.shape or self.ids.ndim != 2:
            raise ValueError(f"top-k: ids {tuple(self.ids.shape)} and scores {tuple(self.scores.shape)} must be (B, K)")
        if self.log_z is not None and self.log_z.shape != self.ids.shape[:1]:
            raise ValueError(f"top-k: log_z must be ({self.ids.shape[0]},), got {tuple(self.log_z.shape)}")

    def probabilities(self, temperature: float) -> Tensor:
        """Return exp(score/τ − log Z), float32 (B, K); 0 where an answer is missing."""
        if self.log_z is None:
            raise ValueError("these answers carry no log-partition; rescore or scan them first")
        # A row without answers has −∞ − (−∞): its probabilities are 0.
        values = torch.exp(self.scores.double() / temperature - self.log_z.double()[:, None]).nan_to_num(nan=0.0)
        return values.clamp(max=1).float()  # log Z is rounded to float32

    def first(self, k: int) -> TopK:
        """Return the k best of every row; the normaliser stays."""
        return TopK(self.ids[:, :k], self.scores[:, :k], self.log_z)


@dataclass(frozen=True)
class Problem:
    """All that a kernel backend may ask before it says whether it can serve a call."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    batch: int | None = None
    labels: int | None = None
    dimension: int | None = None
    needs_grad: bool = False
