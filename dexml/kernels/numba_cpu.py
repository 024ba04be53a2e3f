"""Fused loops on the CPU: block products by torch, top-k and log-sum-exp while a block of scores is in cache, by numba."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from dexml.kernels.base import Kernels, Prepared
from dexml.kernels.checks import check_ids, check_k, check_labels, check_queries
from dexml.kernels.reference import ReferenceKernels
from dexml.types import Positives, Problem, TopK

BLOCK = 1 << 18  # scores of a block (1 MiB as float32): half of the second-level cache of two cores
# Numba's default threading layer aborts the process when two Python threads enter it at once.
_one_at_a_time = threading.Lock()


class NumbaKernels(Kernels):
    """Exact scans and rescoring in float32; the differentiable operations are those of the reference."""

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """Return a reason for anything but float32 on a CPU without a gradient."""
        if problem.device != "cpu":
            return f"runs on the CPU, not on {problem.device}"
        if problem.dtype == torch.float64:
            return "computes in float32, not in float64"
        return "has no gradients" if problem.needs_grad else None

    def prepare(self, labels: Tensor, copy: str = "auto") -> Prepared:
        """Return the labels as contiguous float32 rows (L, D); scans read them directly."""
        check_labels(labels, copy)
        return Prepared(labels.detach().float().contiguous(), "none")

    def scan(self, queries: Tensor, prepared: Prepared, k: int, temperature: float) -> TopK:
        """Return the exact top-k (B, k) and log_z (B), block by block; scores never leave the cache."""
        labels = prepared.labels
        check_queries(queries, labels.shape[1], temperature)
        check_k(k)
        rows = queries.detach().float().contiguous()
        batch, count = len(rows), len(labels)
        kept = min(k, count)
        ids = np.full((batch, k), -1, dtype=np.int64)
        scores = np.full((batch, k), -np.inf, dtype=np.float32)
        top, total = np.full(batch, -np.inf), np.zeros(batch)
        step = max(256, BLOCK // max(1, batch))
        buffer = torch.empty(min(step, count), batch)
        with _one_at_a_time:
            for start in range(0, count if batch else 0, step):
                block = labels[start : start + step]
                product = torch.mm(block, rows.T, out=buffer[: len(block)])
                _absorb(product.numpy(), start, kept, 1 / temperature, ids, scores, top, total)
        with np.errstate(divide="ignore"):
            log_z = top + np.log(total)
        return TopK(torch.from_numpy(ids), torch.from_numpy(scores), torch.from_numpy(log_z).float())

    def rescore(self, queries: Tensor, prepared: Prepared, ids: Tensor, temperature: float) -> TopK:
        """Return candidates `ids` (B, K) by exact score with log_z over them; rows are read in place."""
        labels = prepared.labels
        check_queries(queries, labels.shape[1], temperature)
        check_ids(ids, len(queries), len(labels))
        rows = queries.detach().float().contiguous().numpy()
        ordered, scores, log_z = np.empty_like(ids.numpy()), np.empty(ids.shape, np.float32), np.empty(len(rows), np.float32)
        with _one_at_a_time:
            _rescore(rows, labels.numpy(), ids.contiguous().numpy(), 1 / temperature, ordered, scores, log_z)
        return TopK(torch.from_numpy(ordered), torch.from_numpy(scores), torch.from_numpy(log_z))

    def softmax(self, scores: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the softmax of scores/τ over the last axis."""
        return ReferenceKernels().softmax(scores, temperature)

    def negative_lse(self, queries: Tensor, labels: Tensor, positives: Positives, temperature: float) -> Tensor:
        """Return the reference's."""
        return ReferenceKernels().negative_lse(queries, labels, positives, temperature)

    def topk_threshold(self, queries: Tensor, labels: Tensor, k: int, alpha: float, temperature: float) -> Tensor:
        """Return the reference's."""
        return ReferenceKernels().topk_threshold(queries, labels, k, alpha, temperature)


@njit(cache=True, parallel=True, fastmath={"contract", "reassoc", "nsz"})
def _absorb(product: Any, first: int, k: int, scale: float, ids: Any, scores: Any, top: Any, total: Any) -> None:
    """Take a block of scores (labels, B) into each row's heap of the best k and its running (max, Σ exp)."""
    count, batch = product.shape
    for row in prange(batch):
        best = np.float32(-np.inf)
        for j in range(count):
            best = max(best, product[j, row])
        peak = max(top[row], best * scale)
        mass = 0.0
        for j in range(count):
            mass += np.exp(product[j, row] * scale - peak)
        total[row] = total[row] * np.exp(top[row] - peak) + mass if total[row] > 0 else mass
        top[row] = peak
        for j in range(count):
            score = product[j, row]
            # Labels come in ascending order, so an equal score never displaces an earlier one.
            if score > scores[row, k - 1]:
                place = k - 1
                while place > 0 and scores[row, place - 1] < score:
                    scores[row, place], ids[row, place] = scores[row, place - 1], ids[row, place - 1]
                    place -= 1
                scores[row, place], ids[row, place] = score, first + j


@njit(cache=True, parallel=True, fastmath={"contract", "reassoc", "nsz"})
def _rescore(queries: Any, labels: Any, ids: Any, scale: float, ordered: Any, scores: Any, log_z: Any) -> None:
    """Score candidates in place, sort them by (score descending, id ascending), and sum their exponentials."""
    batch, count = ids.shape
    width = queries.shape[1]
    for row in prange(batch):
        found = np.empty(count, dtype=np.float32)
        for place in range(count):
            label = ids[row, place]
            if label < 0:
                found[place] = -np.inf
                continue
            dot = np.float32(0)
            for d in range(width):
                dot += queries[row, d] * labels[label, d]
            found[place] = dot
        by_id = np.argsort(ids[row])
        order = by_id[np.argsort(-found[by_id], kind="mergesort")]
        peak = found[order[0]] * scale if count else -np.inf
        mass = 0.0
        for place in range(count):
            ordered[row, place] = ids[row, order[place]]
            scores[row, place] = found[order[place]]
            if scores[row, place] > -np.inf:
                mass += np.exp(scores[row, place] * scale - peak)
        log_z[row] = peak + np.log(mass) if mass > 0 else -np.inf
