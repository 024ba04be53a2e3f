"""Value and gradients of a loss a slab of query rows at a time: memory is set by the slab, not by B·L.

Three matrix products in all, none of them recomputed: a slab's scores stay until its gradients are taken. Scores are computed
a block of labels at a time, so that bfloat16 operands need no copy of all labels either.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor

from dexml.kernels.numba_losses import Slab
from dexml.kernels.threads import ONE_AT_A_TIME

SLAB_BYTES = 33 << 20  # of scores
LABELS = 8192  # a block
ROWS_AT_LEAST = 8  # however many labels there are


def value_and_gradients(
    queries: Tensor,
    labels: Tensor,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    loss: Callable[[Slab], None],
    temperature: float,
    half: bool,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the mean of the rows' losses and its gradients by float32 `queries` (B, D) and `labels` (L, D), where wanted.

    `pairs` are indptr (B+1), indices (nnz) and shares (nnz) of the positives; `loss` fills a slab; `half` multiplies bfloat16.
    """
    batch, count = len(queries), len(labels)
    room = -(-count // 16) * 16
    kind = torch.bfloat16 if half else torch.float32
    rows = min(batch, max(ROWS_AT_LEAST, SLAB_BYTES // (room * kind.itemsize)))
    buffer = torch.empty(rows, room, dtype=kind)
    scaled = queries / temperature
    of_queries = torch.zeros_like(queries) if wanted[0] else None
    of_labels = (torch.empty_like if batch else torch.zeros_like)(labels) if wanted[1] else None
    values, indptr, (indices, shares) = np.zeros(batch), pairs[0], pairs[1:]
    for start in range(0, batch, rows):
        part = slice(start, min(start + rows, batch))
        scores, left = buffer[: part.stop - start], scaled[part].to(kind)
        scores[:, count:] = -torch.inf
        for first in range(0, count, LABELS):
            block = labels[first : first + LABELS].to(kind)
            torch.mm(left, block.T, out=scores[:, first : first + len(block)])
        bits = scores.view(torch.int16 if half else torch.int32).numpy()
        coefficients = np.zeros(len(scores))
        with ONE_AT_A_TIME:
            numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
            loss(Slab(bits, half, count, indptr[start : part.stop + 1], indices, shares, values[part], coefficients))
        by_row = torch.from_numpy(coefficients / (batch * temperature)).to(queries.dtype)[:, None]
        weighted = (queries[part] * by_row).to(kind)
        for first in range(0, count, LABELS):
            gradient, block = scores[:, first : min(first + LABELS, count)], labels[first : first + LABELS]
            if of_queries is not None:
                _add_product(of_queries[part], gradient, block.to(kind), True)
            if of_labels is not None:
                _add_product(of_labels[first : first + LABELS], gradient.T, weighted, start > 0)
        if of_queries is not None:
            of_queries[part] *= by_row
    return queries.new_tensor(values.sum() / max(1, batch)), of_queries, of_labels


def _add_product(there: Tensor, left: Tensor, right: Tensor, more: bool) -> None:
    """Add left @ right to float32 `there`, or write it there where there is not `more` to add to."""
    if left.dtype == there.dtype:
        there.addmm_(left, right, beta=1 if more else 0)
    elif more:
        there += left @ right
    else:
        there.copy_(left @ right)
