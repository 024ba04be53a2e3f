"""The CPU backend: fused loops that numba compiles, over float32 block products by torch or int16 ones by AVX-512.

Why int16: unit rows scaled to length 2^15.5 cannot overflow an int32 sum (Cauchy and Schwarz), the products run as fast as
bfloat16 ones, and they are 14 times as precise, which is what keeps log_z within 1e-4 without a second pass.
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
from dexml.kernels.threads import ONE_AT_A_TIME
from dexml.types import Positives, Problem, TopK

log = logging.getLogger(__name__)

SLAB = 256  # queries that share one pass
SAMPLE = 2048  # labels, at least, that correct the log-partition of an approximate pass
SMALL = 8 * SAMPLE  # labels below which a copy does not pay
TOLERANCE = 1e-4 / 4  # of the standard error of log_z, a quarter of what is promised
ROWS_UP_TO = 4  # queries for which a matrix-vector loop is fastest
ALONE_UP_TO = 64  # queries for which torch's part of a pass runs on one thread
PRODUCT = 1 << 20  # scores of a float32 block


@dataclass(frozen=True, eq=False)
class Rounded:
    """An int16 copy of the labels: `rows` (L+, D+), zero-padded, whole multiples of `unit`, and what the rounding cost."""

    rows: npt.NDArray[np.int16]
    unit: float
    worst: float  # the largest ‖y − ỹ‖
    mean_square: float  # of ‖y − ỹ‖
    longest: float  # the largest ‖y‖


class NumbaKernels(Kernels):
    """Exact scans and rescoring on the CPU; the differentiable operations are those of the reference."""

    def __init__(self) -> None:
        self.rescanned = 0  # rows whose log-partition an approximate pass left in doubt, over all scans so far

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
        return Prepared(rows, "int16", {"longest": longest, "rounded": _round(rows, longest)})

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
            answer, _ = _exact_pass(rows, prepared, k, temperature)
            return answer
        with ONE_AT_A_TIME:
            parts = _threads()
            with _one_torch_thread() if len(rows) <= ALONE_UP_TO else nullcontext():
                answer, doubt = _rounded_pass(rows, prepared, rounded, k, temperature, parts)
        doubtful = torch.from_numpy(np.flatnonzero(~(doubt <= TOLERANCE)))
        if len(doubtful):
            self.rescanned += len(doubtful)
            log.debug("%d of %d rows scanned again in float32 for their log-partition", len(doubtful), len(rows))
            again, _ = _exact_pass(rows[doubtful], prepared, 1, temperature)
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


def _units(rows: Tensor) -> Tensor:
    """Return the smallest step (B) at which no int32 sum of int16 products of two such rows can overflow."""
    lengths, largest = torch.linalg.vector_norm(rows, dim=1), rows.abs().amax(1)
    # A hair above the limits: rounding to whole steps makes a row longer by at most √D/2 steps.
    limit = 2**15.5 - rows.shape[1] ** 0.5
    return torch.maximum(lengths / limit, largest / 32766).clamp_(min=1e-30)


def _round(labels: Tensor, longest: float) -> Rounded:
    count, width = labels.shape
    copy = torch.zeros(-(-count // LANES) * LANES, -(-width // 32) * 32, dtype=torch.int16)
    unit = max(float(_units(labels[start : start + 16384]).max()) for start in range(0, count, 16384))
    worst, square = 0.0, 0.0
    for start in range(0, count, 16384):
        block = labels[start : start + 16384]
        whole = torch.round(block / unit)
        copy[start : start + len(block), :width] = whole
        lost = torch.linalg.vector_norm(block - whole * unit, dim=1).double()
        worst, square = max(worst, float(lost.max())), square + float(lost.square().sum())
    return Rounded(copy.numpy(), unit, worst, square / count, longest)


def _call(
    rows: Tensor, prepared: Prepared, k: int, temperature: float, error: Tensor, stride: int
) -> tuple[numba_scan.Call, npt.NDArray[np.float32] | None]:
    """Return what a pass is asked, and the unified maximum (B) where ‖x‖·max‖y‖/τ leaves float32 room on both sides."""
    bound = (torch.linalg.vector_norm(rows, dim=1) * (prepared.private["longest"] * 1.01 / temperature)).numpy()
    unified = bool(len(bound) == 0 or bound.max() <= 40)
    k = min(k, len(prepared))
    call = numba_scan.Call(rows.numpy(), prepared.labels.numpy(), error.numpy(), k, float(1 / temperature), stride, unified)
    return call, bound.astype(np.float32) if unified else None


def _finish(
    call: numba_scan.Call, state: numba_scan.State, k: int, sampled: Tensor, spread: Tensor
) -> tuple[TopK, npt.NDArray[np.float64]]:
    batch = len(call.rows)
    ids, scores = np.full((batch, k), -1, np.int64), np.full((batch, k), -np.inf, np.float32)
    log_z, doubt = np.empty(batch, np.float32), np.empty(batch)
    numba_scan.finish(call, state, sampled.numpy(), spread.numpy(), ids, scores, log_z, doubt)
    return TopK(torch.from_numpy(ids), torch.from_numpy(scores), torch.from_numpy(log_z)), doubt


def _exact_pass(rows: Tensor, prepared: Prepared, k: int, temperature: float) -> tuple[TopK, npt.NDArray[np.float64]]:
    """Scan float32 block products by torch."""
    labels, batch = prepared.labels, len(rows)
    width = labels.shape[1]
    # The rounding of a float32 product of any summation order: D·2^-24 relative to ‖x‖‖y‖, doubled for safety.
    error = torch.linalg.vector_norm(rows, dim=1) * (prepared.private["longest"] * (width + 8) * 2.0**-23) + 1e-37
    call, top = _call(rows, prepared, k, temperature, error, 0)
    state = numba_scan.new_state(1, batch, call.k, top)
    step = max(1024, PRODUCT // batch // LANES * LANES)
    buffer = torch.empty(batch * step)
    with ONE_AT_A_TIME:
        _threads()
        for start in range(0, len(labels), step):
            count = min(step, len(labels) - start)
            room = -(-count // LANES) * LANES
            product = buffer[: batch * room].view(batch, room)
            torch.mm(rows, labels[start : start + count].T, out=product[:, :count])
            numba_scan.absorb_product(call, state, product.numpy(), start, count)
        return _finish(call, state, k, torch.empty(batch, 0), torch.zeros(batch))


def _rounded_pass(
    rows: Tensor, prepared: Prepared, rounded: Rounded, k: int, temperature: float, parts: int
) -> tuple[TopK, npt.NDArray[np.float64]]:
    """Scan the int16 copy, and a sample of the float32 rows that corrects the log-partition."""
    labels, (batch, width) = prepared.labels, rows.shape
    padded = rounded.rows.shape[1]
    steps = _units(rows)
    whole = torch.round(rows / steps[:, None])
    lost = torch.linalg.vector_norm(rows - whole * steps[:, None], dim=1)
    norms, near = torch.linalg.vector_norm(rows, dim=1), whole.to(torch.int16)
    # ⟨x, y⟩ − ⟨x̃, ỹ⟩ = ⟨x, y − ỹ⟩ + ⟨x − x̃, ỹ⟩, and the rounding of the float32 sums.
    longest = rounded.longest + rounded.worst
    error = norms * rounded.worst + lost * longest + norms * longest * (padded + 8) * 2.0**-23
    error = error * (1 + 1e-5) + 1e-37
    # The two parts of the error point in directions that have nothing to do with x and y: on average 1/√D of the bound.
    stride = _prime_from(len(labels) // SAMPLE)
    spread = torch.sqrt((norms**2 * rounded.mean_square + lost**2 * longest**2) / width) / temperature
    if stride == 1:
        spread = torch.zeros(batch)
    call, top = _call(rows, prepared, k, temperature, error, stride)
    sample = labels[::stride]
    sampled = torch.full((batch, -(-len(sample) // LANES) * LANES), -torch.inf)
    torch.mm(rows, sample.T, out=sampled[:, : len(sample)])
    bars = None
    if call.k <= len(sample):  # the k-th best of the sample is the first bar
        bars = (torch.topk(sampled, call.k, dim=1).values[:, -1] - 2 * error).numpy()
    state = numba_scan.new_state(parts, batch, call.k, top, bars)
    if batch <= ROWS_UP_TO:
        vectors, units = np.zeros((1 if batch == 1 else ROWS_UP_TO, padded), np.int16), np.zeros(ROWS_UP_TO, np.float32)
        vectors[:batch, :width], units[:batch] = near.numpy(), (steps * rounded.unit).numpy()
        numba_scan.scan_rows(call, state, rounded.rows, vectors, units)
    else:
        packed, units = _pack(near, steps * rounded.unit, padded, 16 if batch <= 16 else 32)
        numba_scan.scan_tiles(call, state, rounded.rows, packed, units)
    return _finish(call, state, k, sampled, spread)


def _pack(rows: Tensor, steps: Tensor, padded: int, lanes: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """Return int16 rows (B, D) as (G, D+/2, lanes, 2), consecutive queries in consecutive lanes, and their steps (G·lanes).

    Zeros stand beyond B and D.
    """
    groups = -(-len(rows) // lanes)
    room, units = torch.zeros(groups * lanes, padded, dtype=torch.int16), torch.zeros(groups * lanes)
    room[: len(rows), : rows.shape[1]], units[: len(rows)] = rows, steps
    packed = room.view(groups, lanes, padded // 2, 2).transpose(1, 2).contiguous()
    return packed.numpy(), units.numpy()


def _prime_from(number: int) -> int:
    """Return the smallest prime ≥ `number` (1 for less than 2): a stride that no period of the labels divides."""
    candidate = max(1, number)
    while candidate > 1 and any(candidate % d == 0 for d in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate
