"""The GPU backend: Triton kernels that read the labels once. In Triton's interpreter they run on a CPU, for tests."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dexml.errors import InputError
from dexml.kernels.base import Kernels, Prepared
from dexml.kernels.checks import check_ids, check_k, check_labels, check_products, check_queries, check_temperature
from dexml.kernels.reference import ReferenceKernels
from dexml.types import Positives, Problem, TopK

if TYPE_CHECKING:
    from dexml.kernels.triton_scan import Scanned

WORTH_A_COPY = 1 << 16  # labels below which half the bytes save nothing worth having
STEADY = 2.5e-5  # the standard error of log_z up to which a pass reads the copy: a quarter of what is promised


class TritonKernels(Kernels):
    """Exact scans, rescoring, softmax and differentiable row sums on an NVIDIA GPU, in float32 or better."""

    def __init__(self) -> None:
        self.widened = 0  # rows whose first candidate list was not proven, over all scans so far
        self.searched = 0  # rows of those that took a full float64 search

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """Return a reason without triton, without an NVIDIA GPU (unless TRITON_INTERPRET=1), and for float64."""
        interpreting = os.environ.get("TRITON_INTERPRET") == "1"
        if not problem.device.startswith("cuda") and not (problem.device == "cpu" and interpreting):
            return f"runs on an NVIDIA GPU, not on {problem.device}"
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed (pip install 'dexml[triton]')"
        if problem.device.startswith("cuda") and not torch.cuda.is_available():
            return "torch sees no NVIDIA GPU"
        return "computes in float32, not in float64" if problem.dtype == torch.float64 else None

    def prepare(self, labels: Tensor, copy: str = "auto") -> Prepared:
        """Return float32 rows (L, D) where the labels are; "auto" adds an int16 copy, half the bytes, from 65,536 labels on.

        Raises InputError for the int8 copy of the CPU.
        """
        from dexml.kernels.triton_scan import Scanned
        from dexml.kernels.triton_tiles import check_size

        check_labels(labels, copy)
        check_size(labels)
        if copy == "int8":
            raise InputError("the triton kernels scan 'none', 'int16' or 'auto', not an int8 copy")
        rows = labels.detach().float().contiguous()
        private: dict[str, object] = {"longest": float(torch.linalg.vector_norm(rows, dim=1).max())}
        private["rows"] = Scanned(rows, 1.0, 0.0)
        if copy == "none" or (copy == "auto" and len(rows) < WORTH_A_COPY):
            return Prepared(rows, "none", private)
        private["copy"] = _rounded(rows)
        return Prepared(rows, "int16", private)

    def scan(self, queries: Tensor, prepared: Prepared, k: int, temperature: float) -> TopK:
        """Return the exact top-k (B, k) of `queries @ labels.T` and log_z (B), within 1e-4 of float64.

        Order is that of the float64 scores, equal ones by ascending id. `widened` and `searched` count the rows that one
        pass did not settle.
        """
        from dexml.kernels.triton_scan import scan

        labels = prepared.labels
        check_queries(queries, labels.shape[1], temperature)
        check_k(k)
        rows = queries.detach().to(labels.device).float().contiguous()
        scanned = _readable(rows, prepared, temperature)
        answer, widened, searched = scan(rows, labels, scanned, k, temperature, prepared.private["longest"])
        self.widened += widened
        self.searched += searched
        return answer

    def rescore(self, queries: Tensor, prepared: Prepared, ids: Tensor, temperature: float) -> TopK:
        """Return candidates `ids` (B, K) by exact score with log_z over them; rows are read in place."""
        from dexml.kernels.triton_rescore import rescore

        labels = prepared.labels
        check_queries(queries, labels.shape[1], temperature)
        check_ids(ids, len(queries), len(labels))
        rows = queries.detach().to(labels.device).float().contiguous()
        return rescore(rows, labels, ids.to(labels.device), temperature)

    def softmax(self, scores: Tensor, temperature: float = 1.0) -> Tensor:
        """Return torch.softmax(scores/τ, -1), float32; a row of −∞ alone gives zeros."""
        from dexml.kernels.triton_softmax import softmax

        check_temperature(temperature)
        return softmax(scores, temperature)

    def negative_lse(self, queries: Tensor, labels: Tensor, positives: Positives, temperature: float) -> Tensor:
        """Return torch.logsumexp((queries @ labels.T / τ).masked_fill(positive, −∞), 1), float32 (B).

        Of float64 inputs it is the reference's, in float64: tests and gradcheck ask for that.
        """
        if queries.dtype == torch.float64:
            return ReferenceKernels().negative_lse(queries, labels, positives, temperature)
        from dexml.kernels.triton_losses import negative_lse

        check_products(queries, labels, temperature)
        return negative_lse(queries, labels, positives, temperature)

    def topk_threshold(self, queries: Tensor, labels: Tensor, k: int, alpha: float, temperature: float) -> Tensor:
        """Return t (B) with torch.sigmoid(α·(queries @ labels.T / τ + t[:, None])).sum(1) == k, float32; +∞ where k ≥ L.

        Of float64 inputs it is the reference's, in float64.
        """
        if queries.dtype == torch.float64:
            return ReferenceKernels().topk_threshold(queries, labels, k, alpha, temperature)
        from dexml.kernels.triton_losses import threshold_and_pairs

        check_k(k)
        check_products(queries, labels, temperature)
        none = Positives.from_rows([[]] * len(queries), len(labels))
        return threshold_and_pairs(queries, labels, none, k, alpha, temperature, "float32")[0]


def _rounded(rows: Tensor) -> Scanned:
    """Return an int16 copy of float32 rows, padded to whole 32 bytes, with the largest ‖y − ỹ‖."""
    from dexml.kernels.triton_scan import Scanned

    largest = float(rows.abs().max())
    unit = largest / 32767 if largest > 0 else 1.0
    dimension = rows.shape[1]
    copy = torch.zeros(len(rows), -(-dimension // 16) * 16, dtype=torch.int16, device=rows.device)
    worst = 0.0
    step = max(1, (1 << 26) // dimension)  # a block at a time: the copy must not cost a second float32 one
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        whole = torch.round(block / unit).clamp_(-32767, 32767)
        copy[start : start + step, :dimension] = whole.short()
        worst = max(worst, float(torch.linalg.vector_norm(block - whole * unit, dim=1).max()))
    return Scanned(copy, unit, worst * 1.001)


def _readable(queries: Tensor, prepared: Prepared, temperature: float) -> Scanned:
    """Return what the pass reads: the copy, unless its rounding errors, added up at random, would show in log_z."""
    rows: Scanned = prepared.private["rows"]
    copy: Scanned | None = prepared.private.get("copy")
    if copy is None or len(queries) == 0:
        return rows
    longest = float(torch.linalg.vector_norm(queries, dim=1).max())
    return copy if longest * copy.worst / queries.shape[1] ** 0.5 / temperature <= STEADY else rows
