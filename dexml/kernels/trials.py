"""The measurements behind `calibration`: each flow on random unit rows, at the sizes where its rival might be faster."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dexml.kernels import numba_softmax
from dexml.kernels.calibration import Crossovers, fastest
from dexml.kernels.instructions import has_int16_products
from dexml.kernels.numba_cpu import NumbaKernels

WIDTH, LABELS, K, TEMPERATURE = 384, 1 << 16, 100, 0.05
NEVER = 1 << 62


def trials() -> Crossovers:
    """Return the crossovers of this machine: about ten seconds, most of them compilation where numba's cache is empty."""
    tuned = Crossovers(softmax_two_passes_from=_softmax())
    if not has_int16_products():
        return tuned
    labels, queries = _rows(LABELS, 0), _rows(64, 1)
    kernels = NumbaKernels()
    prepared = kernels.prepare(labels, "int16")

    def scan(given: Crossovers, batch: int) -> None:
        kernels.tuned = given
        kernels.scan(queries[:batch], prepared, K, TEMPERATURE)

    def pick(batch: int, field: str, *values: int) -> None:
        nonlocal tuned
        choices = {value: tuned.model_copy(update={field: value}) for value in values}
        best = fastest(list(choices), lambda value: scan(choices[value], batch))
        tuned = choices[best]

    pick(4, "rows_up_to", 1, 4)
    pick(16, "narrow_up_to", 4, 16)
    pick(32, "block", 128, 256, 512)
    pick(64, "alone_up_to", 16, 64)
    kernels.tuned = tuned
    sizes = [size for size in (1 << 12, 1 << 13, 1 << 14, 1 << 15) if _copy_wins(kernels, labels[:size], queries[:8])]
    return tuned.model_copy(
        update={"copy_from": min(sizes, default=LABELS), "bytes_from": 1 << 25 if _bytes_win(kernels, queries[:1]) else 1 << 27}
    )


def _bytes_win(kernels: NumbaKernels, query: Tensor) -> bool:
    labels = _rows(2 * LABELS, 2)
    both = {copy: kernels.prepare(labels, copy) for copy in ("int16", "int8")}
    # At a temperature at which the int8 copy never fails: where it does, it waits (numba_cpu._Patience). And a query that
    # comes alone finds the caches full of something else.
    other = torch.zeros(1 << 26)
    return fastest(list(both), lambda copy: kernels.scan(query, both[copy], K, 1.0), lambda: other.add_(1)) == "int8"


def _copy_wins(kernels: NumbaKernels, labels: Tensor, queries: Tensor) -> bool:
    both = {copy: kernels.prepare(labels, copy) for copy in ("none", "int16")}
    return fastest(list(both), lambda copy: kernels.scan(queries, both[copy], K, TEMPERATURE)) == "int16"


def _softmax() -> int:
    """Return the scores of a softmax, all rows, from which two passes are faster than three: around half of the last cache."""
    guess = numba_softmax.cache_bytes(3) // 16
    scores = torch.from_numpy(np.random.default_rng(0).standard_normal((8, guess // 4), np.float32) * 10)
    before = numba_softmax.CROSSOVER
    try:
        for size in (guess // 4, guess // 2, guess, 2 * guess):
            rows = scores[:, : size // 8].contiguous()

            def run(crossover: int, rows: Tensor = rows) -> None:
                numba_softmax.CROSSOVER = crossover
                numba_softmax.softmax(rows, 1.0, torch.get_num_threads())

            if fastest([0, NEVER], run) == 0:
                return size
        return 4 * guess
    finally:
        numba_softmax.CROSSOVER = before


def _rows(count: int, seed: int) -> Tensor:
    return normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)
