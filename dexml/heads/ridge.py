"""Ridge regression of a row's labels, one solve for all of them: the fully bundled head of scalable neural network kernels.

W = argmin ‖X·Wᵀ − Y‖² + λ‖W − c·S‖², that is Wᵀ = (XᵀX + λI)⁻¹(XᵀY + λc·Sᵀ), for rows X (N, D) and Y (N, L) of zeros and ones.
With S = 0 it is the paper's (XᵀX + λI)⁻¹XᵀY (Sehanobish et al., ICLR 2024). Rows S of the labels' texts keep a label of few
rows near its text; c = ⟨Y, X·Sᵀ⟩/‖X·Sᵀ‖² is what explains Y best by the texts alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from dexml.heads.base import Head
from dexml.types import Positives


class Ridge(Head):
    """`penalty` is λ: what is expected weighs as much as λ rows would that point in one direction."""

    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"penalty": (0.1, 0.3, 1.0, 0.03)}

    def __init__(self, *, penalty: Annotated[float, Gt(0)] = 0.1) -> None:
        self.penalty = penalty

    def stages(self, rows: Tensor, positives: Positives, start: Tensor) -> Iterator[Tensor]:
        """Yield the weights once."""
        yield self.fit(rows, positives, start)

    def fit(self, rows: Tensor, positives: Positives, expected: Tensor) -> Tensor:
        """Return W (L, D) for `rows` (N, D) and S (L, D), in their number type; rows without positives are left out."""
        labelled = np.flatnonzero(np.diff(positives.indptr))
        some = replace(positives.take(labelled), weights=None)
        rows = rows[torch.from_numpy(labelled)]
        sums = torch.from_numpy(some.matrix().T.astype(rows.numpy().dtype) @ rows.numpy())  # XᵀY, (L, D)
        gram = rows.double().T @ rows.double()
        of_texts = (gram * (expected.T @ expected)).sum().item()
        scale = (sums * expected).sum().item() / of_texts if of_texts > 0 else 0.0
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + self.penalty * torch.eye(len(gram)).double()))
        return (sums + self.penalty * scale * expected) @ inverse.to(rows.dtype)
