"""The CPU backend: fused loops that numba compiles, over float32 block products by torch or int16 ones by AVX-512.

Why int16: the products run as fast as bfloat16 ones and are many times as precise, which is what keeps log_z within 1e-4
without a second pass (rounding.py, docs/adr/0005).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dexml.errors import InputError
from dexml.kernels import numba_rescore, numba_scan
from dexml.kernels.base import Kernels, Prepared
from dexml.kernels.checks import check_ids, check_k, check_labels, check_queries
from dexml.kernels.instructions import LANES, has_int16_products
from dexml.kernels.reference import ReferenceKernels
from dexml.kernels.rounding import SAMPLE, RoundedLabels, log_partition, pack, round_labels, round_queries, score_error
from dexml.kernels.threads import ONE_AT_A_TIME
from dexml.types import Positives, Problem, TopK

log = logging.getLogger(__name__)

SLAB = 256  # queries that share one pass
SMALL = 8 * SAMPLE  # labels below which a copy does not pay
TOLERANCE = 1e-4 / 4  # of the standard error of log_z, a quarter of what is promised
ROWS_UP_TO = 4  # queries for which a matrix-vector loop is fastest
ALONE_UP_TO = 64  # queries for which torch's part of a pass runs on one thread
UNIFIED_UP_TO = 40  # the largest ‖x‖·max‖y‖/τ that float32 exponentials, squared too, can have taken off beforehand
PRODUCT = 1 << 20  # scores of a float32 block


class NumbaKernels(Kernels):
    """Exact scans and rescoring on the CPU; the differentiable operations are those of the reference."""

    def __init__(self) -> None:
        self.scanned = 0  # rows answered from an int16 copy so far
        self.rescanned = 0  # of these, rows scanned again in float32 because their log-partition was in doubt

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """Return a reason for anything but float32 on a CPU without a gradient."""
        if problem.device != "cpu":
            return f"runs on the CPU, not on {problem.device}"
        if problem.dtype == torch.float64:
            return "computes in float32, not in float64"
        return "has no gradients" if problem.needs_grad else None

    def prepare(self, labels: Tensor, copy: str = "auto") -> Prepared:
        """Return float32 rows (L, D); "auto" adds an int16 copy where the CPU multiplies it and L is worth it.

        Raises InputError for a copy that this CPU or backend cannot scan.
        """
        check_labels(labels, copy)
        rows = labels.detach().float().contiguous()
        if copy == "int16" and not has_int16_products():
            raise InputError("this CPU has no AVX-512 BW, which scanning an int16 copy takes; ask for 'none' or 'auto'")
        longest = float(torch.linalg.vector_norm(rows, dim=1).max())
        if copy == "none" or (copy == "auto" and not (has_int16_products() and len(rows) >= SMALL)):
            return Prepared(rows, "none", {"longest": longest})
        return Prepared(rows, "int16", {"longest": longest, "rounded": round_labels(rows, longest)})

    def scan(self, queries: Tensor, prepared: Prepared, k: int, temperature: float) -> TopK:
        """Return the exact top-k (B, k) of `queries @ labels.T` and log_z (B), within 1e-4 of float64.

        Scores never leave the cache. Order is that of the float64 scores, equal ones by ascending id.
        """
        labels = prepared.labels
        check_queries(queries, labels.shape[1], temperature)
        check_k(k)
        rows = queries.detach().float().contiguous()
        answers = [self._slab(rows[start : start + SLAB], prepared, k, temperature) for start in range(0, len(rows), SLAB)]
        if not answers:
            return TopK(torch.empty(0, k, dtype=torch.int64), torch.empty(0, k), torch.empty(0))
        if len(answers) == 1:
            return answers[0]
        ids, scores, log_z = zip(*((a.ids, a.scores, a.log_z) for a in answers), strict=True)
        return TopK(torch.cat(ids), torch.cat(scores), torch.cat(log_z))

    def rescore(self, queries: Tensor, prepared: Prepared, ids: Tensor, temperature: float) -> TopK:
        """Return candidates `ids` (B, K) by exact score with log_z over them; rows are read in place."""
        labels = prepared.labels
        check_queries(queries, labels.shape[1], temperature)
        check_ids(ids, len(queries), len(labels))
        rows = queries.detach().float().contiguous().numpy()
        given = ids.contiguous().numpy()
        ordered, scores, log_z = np.empty_like(given), np.empty(given.shape, np.float32), np.empty(len(rows), np.float32)
        with ONE_AT_A_TIME:
            _threads()
            numba_rescore.rescore(rows, labels.numpy(), given, 1 / temperature, ordered, scores, log_z)
        return TopK(torch.from_numpy(ordered), torch.from_numpy(scores), torch.from_numpy(log_z))

    def softmax(self, scores: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the reference's, in float64 inside: float32 loses a part in 10^5 where an exponent is near −100."""
        return ReferenceKernels().softmax(scores, temperature)

    def negative_lse(self, queries: Tensor, labels: Tensor, positives: Positives, temperature: float) -> Tensor:
        """Return the reference's."""
        return ReferenceKernels().negative_lse(queries, labels, positives, temperature)

    def topk_threshold(self, queries: Tensor, labels: Tensor, k: int, alpha: float, temperature: float) -> Tensor:
        """Return the reference's."""
        return ReferenceKernels().topk_threshold(queries, labels, k, alpha, temperature)

    def _slab(self, rows: Tensor, prepared: Prepared, k: int, temperature: float) -> TopK:
        rounded = prepared.private.get("rounded")
        if rounded is None:
            return _exact_pass(rows, prepared, k, temperature)
        with ONE_AT_A_TIME:
            parts = _threads()
            with _one_torch_thread() if len(rows) <= ALONE_UP_TO else nullcontext():
                answer, doubtful = _rounded_pass(rows, prepared, rounded, k, temperature, parts)
        self.scanned += len(rows)
        if len(doubtful):
            self.rescanned += len(doubtful)
            log.debug("%d of %d rows scanned again in float32 for their log-partition", len(doubtful), len(rows))
            again = _exact_pass(rows[doubtful], prepared, 1, temperature)
            assert answer.log_z is not None and again.log_z is not None
            answer.log_z[doubtful] = again.log_z
        return answer


def _threads() -> int:
    """Give numba as many threads as torch uses, and return how many."""
    count = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(count)
    return int(count)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch's pool asleep: its threads spin for milliseconds after a product, on the cores that numba's then need."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _call(
    rows: Tensor, prepared: Prepared, k: int, temperature: float, error: Tensor
) -> tuple[numba_scan.Call, npt.NDArray[np.float32] | None]:
    """Return what a pass is asked, and the unified maximum (B) where ‖x‖·max‖y‖/τ leaves float32 room on both sides."""
    bound = (torch.linalg.vector_norm(rows, dim=1) * (prepared.private["longest"] * 1.01 / temperature)).numpy()
    unified = bool(len(bound) == 0 or bound.max() <= UNIFIED_UP_TO)
    k = min(k, len(prepared))
    call = numba_scan.Call(rows.numpy(), prepared.labels.numpy(), error.numpy(), k, float(1 / temperature), unified)
    return call, bound.astype(np.float32) if unified else None


@dataclass(frozen=True, eq=False)
class _Answer:
    """Room for what `numba_scan.finish` writes."""

    ids: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    masses: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, batch: int, k: int) -> _Answer:
        return cls(np.full((batch, k), -1, np.int64), np.full((batch, k), -np.inf, np.float32), np.full((batch, 3), -np.inf))

    def topk(self, log_z: Tensor) -> TopK:
        return TopK(torch.from_numpy(self.ids), torch.from_numpy(self.scores), log_z.float())


def _exact_pass(rows: Tensor, prepared: Prepared, k: int, temperature: float) -> TopK:
    """Scan float32 block products by torch."""
    labels, batch = prepared.labels, len(rows)
    width = labels.shape[1]
    # The rounding of a float32 product of any summation order: D·2^-24 relative to ‖x‖‖y‖, doubled for safety.
    error = torch.linalg.vector_norm(rows, dim=1) * (prepared.private["longest"] * (width + 8) * 2.0**-23) + 1e-37
    call, top = _call(rows, prepared, k, temperature, error)
    state = numba_scan.new_state(1, batch, call.k, top)
    step = max(1024, PRODUCT // batch // LANES * LANES)
    buffer = torch.empty(batch * step)
    answer = _Answer.empty(batch, k)
    with ONE_AT_A_TIME:
        _threads()
        for start in range(0, len(labels), step):
            count = min(step, len(labels) - start)
            room = -(-count // LANES) * LANES
            product = buffer[: batch * room].view(batch, room)
            torch.mm(rows, labels[start : start + count].T, out=product[:, :count])
            numba_scan.absorb_product(call, state, product.numpy(), start, count)
        none = np.empty((batch, 0), np.float32)
        numba_scan.finish(call, state, np.arange(batch), False, none, 0, answer.ids, answer.scores, answer.masses)
    masses = torch.from_numpy(answer.masses)
    return answer.topk(torch.logaddexp(masses[:, 0], masses[:, 1]))


def _rounded_pass(
    rows: Tensor, prepared: Prepared, labels: RoundedLabels, k: int, temperature: float, parts: int
) -> tuple[TopK, Tensor]:
    """Scan the int16 copy; return the answer and the numbers of the rows whose log-partition is in doubt."""
    batch, width = len(rows), labels.rows.shape[1]
    queries = round_queries(rows)
    error = score_error(queries, labels)
    call, top = _call(rows, prepared, k, temperature, error)
    sampled = rows @ labels.sample.T
    bars = None
    if call.k <= len(labels.sample):  # the k-th best of the sample is the first bar
        bars = (torch.topk(sampled, call.k, dim=1).values[:, -1] - 2 * error).numpy()
    state = numba_scan.new_state(parts, batch, call.k, top, bars)
    units = torch.zeros(-(-batch // 32) * 32)
    units[:batch] = queries.units * labels.unit
    if batch <= ROWS_UP_TO:
        vectors = torch.zeros(1 if batch == 1 else ROWS_UP_TO, width, dtype=torch.int16)
        vectors[:batch, : rows.shape[1]] = queries.near
        numba_scan.scan_rows(call, state, labels.rows, vectors.numpy(), units.numpy())
    else:
        packed = pack(queries, width, 16 if batch <= 16 else 32)
        numba_scan.scan_tiles(call, state, labels.rows, packed, units.numpy())
    answer = _Answer.empty(batch, k)
    which, log_z = np.arange(batch), torch.empty(batch, dtype=torch.float64)
    for wide in (False, True):
        numba_scan.finish(call, state, which, wide, sampled.numpy(), labels.stride, answer.ids, answer.scores, answer.masses)
        log_z, doubt = log_partition(torch.from_numpy(answer.masses), queries, labels, sampled, temperature)
        which = np.flatnonzero(~(doubt <= TOLERANCE).numpy())
        if len(which) == 0:
            break
    return answer.topk(log_z), torch.from_numpy(which)
