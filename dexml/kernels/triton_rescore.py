"""Exact scores of given candidates on the GPU, each label row read where it lies."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexml.kernels.triton_tiles import SIZES, tuned
from dexml.types import TopK


@tuned(
    [
        triton.Config({"BLOCK_K": 16, "BLOCK_D": 128}, num_warps=4),
        triton.Config({"BLOCK_K": 32, "BLOCK_D": 64}, num_warps=4),
        triton.Config({"BLOCK_K": 32, "BLOCK_D": 128}, num_warps=8),
    ],
    key=["D"],
)
@triton.jit(do_not_specialize=SIZES)
def rescore_kernel(
    queries: tl.tensor,  # (B, D) float32
    labels: tl.tensor,  # (L, D) float32
    ids: tl.tensor,  # (B, K) int64
    scores: tl.tensor,  # (B, K) float64
    K: tl.tensor,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Write ⟨queries[i], labels[ids[i, j]]⟩ in float64, −∞ where the id is −1.

    Products of float32 numbers are exact in float64, and the memory is too slow for the wider sum to cost anything.
    """
    blocks = tl.cdiv(K, BLOCK_K)  # one axis for both: the second axis of a grid ends at 65,535
    row = (tl.program_id(0) // blocks).to(tl.int64)
    places = tl.program_id(0) % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    candidates = tl.load(ids + row * K + places, mask=places < K, other=-1)
    total = tl.zeros((BLOCK_K,), dtype=tl.float64)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        query = tl.load(queries + row * D + d, mask=d < D, other=0.0).to(tl.float64)
        mask = (candidates >= 0)[:, None] & (d < D)[None, :]
        label = tl.load(labels + candidates[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float64)
        total += tl.sum(label * query[None, :], 1)
    tl.store(scores + row * K + places, tl.where(candidates >= 0, total, float("-inf")), mask=places < K)


def exact_scores(queries: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
    """Return (queries[:, None].double() * labels[ids].double()).sum(-1), float64 (B, K); −∞ where an id is −1."""
    batch, count = ids.shape
    scores = torch.empty(batch, count, dtype=torch.float64, device=ids.device)
    if ids.numel():
        ids, dimension = ids.contiguous(), labels.shape[1]
        rescore_kernel[lambda meta: (batch * triton.cdiv(count, meta["BLOCK_K"]),)](
            queries, labels, ids, scores, count, D=dimension
        )
    return scores


def rescore(queries: Tensor, labels: Tensor, ids: Tensor, temperature: float) -> TopK:
    """Return the candidates `ids` (B, K) in the order of their float64 scores, equal ones by ascending id, and log_z (B)."""
    ids = ids.sort(1).values  # equal scores then come by ascending id, and −1 sinks to the end with its −∞
    scores, places = torch.sort(exact_scores(queries, labels, ids), dim=1, descending=True, stable=True)
    log_z = torch.logsumexp(scores / temperature, 1)
    return TopK(ids.gather(1, places), scores.float(), log_z.float())
