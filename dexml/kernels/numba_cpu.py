"""The CPU backend: fused loops that numba compiles, over float32 block products by torch or int16 ones by AVX-512.

Why int16: the products run as fast as bfloat16 ones and are many times as precise, which is what keeps log_z within 1e-4
without a second pass (rounding.py, docs/adr/0005).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dexml.errors import InputError
from dexml.kernels import numba_rescore, numba_scan, numba_slabs, numba_softmax
from dexml.kernels.base import Kernels, Prepared
from dexml.kernels.calibration import Crossovers, crossovers, known
from dexml.kernels.checks import (
    check_ids,
    check_k,
    check_labels,
    check_pairs,
    check_products,
    check_queries,
    check_temperature,
)
from dexml.kernels.instructions import LANES, has_int16_products
from dexml.kernels.numba_finish import finish
from dexml.kernels.pages import on_huge_pages
from dexml.kernels.reference import ReferenceKernels
from dexml.kernels.rounding import (
    RoundedLabels,
    noise,
    pack,
    round_labels,
    round_queries,
    score_error,
    take_sample,
)
from dexml.kernels.threads import ONE_AT_A_TIME
from dexml.types import Float32Array, Positives, Problem, TopK

log = logging.getLogger(__name__)

SLAB = 256  # queries that share one pass
TOLERANCE = 1e-4 / 4  # of the standard error of log_z, a quarter of what is promised
BYTES_UP_TO = 8192  # dimension at which its int32 sums cannot overflow
VECTORS = 4  # queries of the matrix-vector loop
SMALL = 4096  # labels that are never worth a copy, nor a measurement
UNIFIED_UP_TO = 40  # the largest ‖x‖·max‖y‖/τ that float32 exponentials, squared too, can have taken off beforehand
PRODUCT = 1 << 20  # scores of a float32 block


class NumbaKernels(Kernels):
    """Exact scans, rescoring and differentiable row sums on the CPU, in float32 or better."""

    def __init__(self) -> None:
        self.tuned: Crossovers | None = None  # None: those of this machine
        self.scanned = 0  # rows answered from an int16 copy so far
        self.rescanned = 0  # of these, rows scanned again in float32 because their log-partition was in doubt

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """Return a reason for anything but float32 on a CPU."""
        if problem.device != "cpu":
            return f"runs on the CPU, not on {problem.device}"
        return "computes in float32, not in float64" if problem.dtype == torch.float64 else None

    def prepare(self, labels: Tensor, copy: str = "auto") -> Prepared:
        """Return float32 rows (L, D) with an int16 copy, or "int8" with both; "auto" makes those that the CPU and L are worth.

        Raises InputError for a copy that this CPU or backend cannot scan.
        """
        check_labels(labels, copy)
        rows = labels.detach().float().contiguous()
        on_huge_pages(rows)
        if copy.startswith("int") and not has_int16_products():
            raise InputError(f"this CPU has no AVX-512 BW, which scanning an {copy} copy takes; ask for 'none' or 'auto'")
        longest = float(torch.linalg.vector_norm(rows, dim=1).max())
        if copy == "auto":
            copy = self._worth(rows)
        if copy == "none":
            return Prepared(rows, copy, {"longest": longest})
        copies = [round_labels(rows, longest)]
        if copy == "int8" and rows.shape[1] <= BYTES_UP_TO:
            copies.insert(0, round_labels(rows, longest, bits=8))
        return Prepared(
            rows, copy, {"longest": longest, "copies": copies, "sample": take_sample(rows), "patience": _Patience()}
        )

    def _worth(self, rows: Tensor) -> str:
        if not has_int16_products() or len(rows) < SMALL:
            return "none"
        tuned = self.tuned or crossovers()
        if rows.numel() < tuned.copy_from * 384:
            return "none"
        return "int8" if rows.numel() >= tuned.bytes_from else "int16"

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
        """Return the softmax in two passes over memory, or three in cache; the reference's for float64 or a gradient.

        A row with +∞ or NaN gives NaN, as torch's does. Raises InputError unless the temperature is a finite number above 0.
        """
        check_temperature(temperature)
        if scores.dtype == torch.float64 or (scores.requires_grad and torch.is_grad_enabled()):
            return ReferenceKernels().softmax(scores, temperature)
        if scores.numel() < numba_softmax.ALONE:
            return numba_softmax.softmax(scores, temperature, 1)
        with ONE_AT_A_TIME:
            return numba_softmax.softmax(scores, temperature, _threads())

    def negative_lse(self, queries: Tensor, labels: Tensor, positives: Positives, temperature: float) -> Tensor:
        """Return torch.logsumexp((queries @ labels.T / τ).masked_fill(positive, −∞), 1), float32 (B).

        Scores exist a slab of rows at a time, in both directions. Of float64 inputs it is the reference's, in float64.
        """
        if not _slabs_serve(queries, labels):
            return ReferenceKernels().negative_lse(queries, labels, positives, temperature)
        check_products(queries, labels, temperature)
        check_pairs(queries, labels, positives)
        return numba_slabs.negative_lse(queries, labels, positives, temperature)

    def topk_threshold(self, queries: Tensor, labels: Tensor, k: int, alpha: float, temperature: float) -> Tensor:
        """Return t (B) with torch.sigmoid(α·(queries @ labels.T / τ + t[:, None])).sum(1) == k, float32; +∞ where k ≥ L.

        Scores exist a slab of rows at a time, in both directions. Of float64 inputs it is the reference's, in float64.
        """
        if not _slabs_serve(queries, labels):
            return ReferenceKernels().topk_threshold(queries, labels, k, alpha, temperature)
        check_k(k)
        check_products(queries, labels, temperature)
        return numba_slabs.topk_threshold(queries, labels, k, alpha, temperature)

    def _slab(self, rows: Tensor, prepared: Prepared, k: int, temperature: float) -> TopK:
        """Answer from the shortest copy; rows whose log-partition it leaves in doubt from the next, at last in float32."""
        answer, tuned = None, self.tuned or known()
        which = torch.arange(len(rows))
        for copy in prepared.private.get("copies", ()):
            short = copy.rows.itemsize == 1
            if short and (len(rows) > tuned.rows_up_to or not prepared.private["patience"].ready()):
                continue
            with ONE_AT_A_TIME:
                parts = _threads()
                with _one_torch_thread() if tuned.rows_up_to < len(which) <= tuned.alone_up_to else nullcontext():
                    asked = rows if answer is None else rows[which]
                    found, doubtful = _rounded_pass(asked, prepared, copy, k, temperature, parts, tuned)
            answer = _into(answer, found, which)
            which = which[doubtful]
            if short:
                prepared.private["patience"].learn(len(which) == 0)
            if len(which) == 0:
                break
        else:
            if answer is not None:
                self.rescanned += len(which)
                log.debug("%d of %d rows scanned again in float32 for their log-partition", len(which), len(rows))
            answer = _into(answer, _exact_pass(rows[which], prepared, k, temperature), which)
        self.scanned += len(rows)
        assert answer is not None
        return answer


class _Patience:
    """Whether a copy that may fail is worth a try: after each failure in a row it waits for twice as many calls, 64 at most."""

    def __init__(self) -> None:
        self.wait, self.failures = 0, 0

    def ready(self) -> bool:
        self.wait -= 1
        return self.wait < 0

    def learn(self, good: bool) -> None:
        self.failures = 0 if good else min(self.failures + 1, 6)
        self.wait = 0 if good else 2**self.failures


def _into(answer: TopK | None, found: TopK, which: Tensor) -> TopK:
    """Put the rows `which` of an answer in their place."""
    if answer is None:
        return found
    assert answer.log_z is not None and found.log_z is not None
    answer.ids[which], answer.scores[which], answer.log_z[which] = found.ids, found.scores, found.log_z
    return answer


def _slabs_serve(queries: Tensor, labels: Tensor) -> bool:
    """Return whether slabs of float32 scores serve: on a CPU, nothing in float64, and any label at all."""
    number = torch.promote_types(queries.dtype, labels.dtype)
    return len(labels) > 0 and NumbaKernels.unsupported(Problem(queries.device.type, number)) is None


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
    rows: Float32Array,
    norms: npt.NDArray[np.float64],
    prepared: Prepared,
    k: int,
    temperature: float,
    error: Float32Array,
    block: int,
) -> tuple[numba_scan.Call, Float32Array | None]:
    """Return what a pass is asked, and the unified maximum (B) where ‖x‖·max‖y‖/τ leaves float32 room on both sides."""
    bound = norms * (prepared.private["longest"] * 1.01 / temperature)
    unified = bool(len(bound) == 0 or bound.max() <= UNIFIED_UP_TO)
    call = numba_scan.Call(rows, prepared.labels.numpy(), error, min(k, len(prepared)), float(1 / temperature), block, unified)
    return call, bound.astype(np.float32) if unified else None


class _Answer(NamedTuple):
    """Room for what `finish` writes: B rows, k places."""

    ids: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    log_z: npt.NDArray[np.float32]
    doubt: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, batch: int, k: int) -> _Answer:
        ids, scores = np.full((batch, k), -1, np.int64), np.full((batch, k), -np.inf, np.float32)
        return cls(ids, scores, np.empty(batch, np.float32), np.empty(batch))

    def topk(self) -> TopK:
        return TopK(torch.from_numpy(self.ids), torch.from_numpy(self.scores), torch.from_numpy(self.log_z))


def _exact_pass(rows: Tensor, prepared: Prepared, k: int, temperature: float) -> TopK:
    """Scan float32 block products by torch."""
    labels, batch = prepared.labels, len(rows)
    width = labels.shape[1]
    # The rounding of a float32 product of any summation order: D·2^-24 relative to ‖x‖‖y‖, doubled for safety.
    norms = torch.linalg.vector_norm(rows.double(), dim=1).numpy()
    error = (norms * (prepared.private["longest"] * (width + 8) * 2.0**-23) + 1e-37).astype(np.float32)
    call, top = _call(rows.numpy(), norms, prepared, k, temperature, error, 0)
    state = numba_scan.new_state(1, batch, max(512, 4 * k), top)
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
        finish(call, state, np.arange(batch), False, np.zeros((batch, 2)), np.zeros((batch, 5)), (none, none, 0), *answer)
    return answer.topk()


def _rounded_pass(
    rows: Tensor, prepared: Prepared, labels: RoundedLabels, k: int, temperature: float, parts: int, tuned: Crossovers
) -> tuple[TopK, Tensor]:
    """Scan an int16 or int8 copy; return the answer and the numbers of the rows whose log-partition is in doubt."""
    batch, sample = len(rows), prepared.private["sample"]
    queries = round_queries(rows.numpy())
    error = score_error(queries, labels)
    call, top = _call(queries.both[:batch], queries.norms, prepared, k, temperature, error, tuned.block)
    few = batch <= tuned.rows_up_to
    if few:
        products = np.empty((2 * batch, len(sample.rows)), np.float32)
        numba_scan.few_products(queries.both, sample.rows.numpy(), products)
    else:
        products = (torch.from_numpy(queries.both) @ sample.rows.T).numpy()
    bars = np.empty(batch, np.float32)
    numba_scan.first_bars(call, products, sample.count, bars)
    state = numba_scan.new_state(parts, batch, max(512, 4 * k) * 2 // labels.rows.itemsize, top, bars)
    lanes = VECTORS if few else 16 if batch <= tuned.narrow_up_to else 32
    units = np.zeros(-(-batch // lanes) * lanes, np.float32)
    units[:batch] = queries.units * np.float32(labels.unit)
    if few:
        vectors = queries.near if batch == 1 else np.resize(queries.near, (VECTORS, queries.near.shape[1]))
        numba_scan.scan_rows(call, state, labels.rows, labels.steps, vectors, units)
    else:
        numba_scan.scan_tiles(call, state, labels.rows, pack(queries.near, lanes), units)
    answer, which = _Answer.empty(batch, k), np.arange(batch)
    told = (products[:batch], products[batch:], sample.stride)
    known = np.zeros((batch, 5)) if labels.levers is None else labels.levers.of(queries.both[:batch], len(prepared))
    for wide in (False, True):
        finish(call, state, which, wide, noise(queries, labels, temperature), known, told, *answer)
        which = np.flatnonzero(~(answer.doubt <= TOLERANCE))
        if len(which) == 0:
            break
    return answer.topk(), torch.from_numpy(which)
