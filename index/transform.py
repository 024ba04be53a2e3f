"""A transform before quantization that keeps every inner product and makes rounding cost less (OSTQuant, arXiv 2501.13987).

d' = Λ⁻¹Oᵀd for labels and q' = ΛOᵀq for queries, O orthogonal and Λ diagonal: ⟨q', d'⟩ = ⟨q, d⟩. O starts as the covariance's
eigenvectors turned by a random rotation, which spreads what is large over all dimensions; then O and Λ are learned so that the
softmax over each query's best labels survives the rounding (KL-Top). An adaptation: the paper folds its transforms into a
language model's layers; ours sits before the index, and rescoring reads the rows as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

FILE = "transform.safetensors"
TEMPERATURE = 0.05  # of the softmax that is to survive
TOP = 100  # labels of it
QUERIES = 128  # a step


@dataclass(frozen=True, eq=False)
class Transform:
    """`of_labels` and `of_queries` float32 (D, D), multiplied from the right; the one times the other's transpose is I."""

    of_labels: Tensor
    of_queries: Tensor

    def save(self, folder: Path) -> None:
        """Write the two matrices."""
        save_file({"of_labels": self.of_labels, "of_queries": self.of_queries}, folder / FILE)

    @staticmethod
    def load(folder: Path) -> Transform:
        """Read them back."""
        tensors = load_file(folder / FILE)
        return Transform(tensors["of_labels"], tensors["of_queries"])


def rounded(rows: Tensor, bits: int) -> Tensor:
    """Return what a scalar quantizer with a range per dimension keeps of rows (L, D), with the gradient of the rows themselves.

    FAISS's QT_8bit and QT_4bit: 2^bits − 1 equal steps between each dimension's least and largest number.
    """
    low, high = rows.detach().amin(0), rows.detach().amax(0)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    near = (((rows.detach() - low) / step).floor().clamp(max=2**bits - 1) + 0.5) * step + low
    straight: Tensor = rows + (near - rows.detach())
    return straight


def start(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Return the orthogonal matrix (D, D) that learning starts from: eigenvectors of the covariance, then a random rotation.

    The paper's second factor is a Hadamard matrix, which few dimensions have.
    """
    width = rows.shape[1]
    _, vectors = torch.linalg.eigh(torch.cov(rows.double().T).reshape(width, width))
    turned, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    rotation: Tensor = vectors @ turned
    return rotation


def learn(labels: Tensor, bits: int, *, steps: int = 100, sample: int = 16_384, seed: int = 0) -> Transform:
    """Return the transform of label rows float32 (L, D) for a scalar quantizer of `bits`.

    Queries are made of the labels: the sum of two of a few, as texts are that have several. The best of what was seen on
    queries held out is returned: the start, or a step of the learning.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = labels[torch.randperm(len(labels), generator=generator)[:sample]].float()
    width = rows.shape[1]
    base = start(rows, generator).float()
    skew, scale = torch.zeros(width, width, requires_grad=True), torch.zeros(width, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [skew], "lr": 2e-3}, {"params": [scale], "lr": 1e-2}])
    watched = _queries(rows, 2 * QUERIES, generator)
    best = (_divergence(rows, watched, bits, base, scale).item(), base, scale.detach().clone())
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, (2e-3, 1e-2), strict=True):
            group["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        rotation = base @ torch.matrix_exp(skew - skew.T)
        _divergence(rows, _queries(rows, QUERIES, generator), bits, rotation, scale).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 10 == 9:
            with torch.no_grad():
                rotation = base @ torch.matrix_exp(skew - skew.T)
                value = _divergence(rows, watched, bits, rotation, scale).item()
            if value < best[0]:
                best = value, rotation, scale.detach().clone()
    orthogonal, upper = torch.linalg.qr(best[1].double())
    orthogonal = orthogonal * upper.diagonal().sign()
    factors = best[2].double().exp()
    return Transform((orthogonal / factors).float().contiguous(), (orthogonal * factors).float().contiguous())


def _queries(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    picks = torch.randint(len(rows), (2, count), generator=generator)
    return normalize(rows[picks[0]] + rows[picks[1]], dim=1)


def _divergence(rows: Tensor, queries: Tensor, bits: int, rotation: Tensor, scale: Tensor) -> Tensor:
    """Return the mean KL of the softmax over the best labels before and after the rounding."""
    with torch.no_grad():
        best = (queries @ rows.T).topk(min(TOP, len(rows)), dim=1)
        teacher = torch.log_softmax(best.values / TEMPERATURE, dim=1)
    coarse = rounded((rows @ rotation) * (-scale).exp(), bits)
    asked = (queries @ rotation) * scale.exp()
    scores = (asked[:, None] * coarse[best.indices]).sum(2)
    return torch.nn.functional.kl_div(
        torch.log_softmax(scores / TEMPERATURE, dim=1), teacher, reduction="batchmean", log_target=True
    )
