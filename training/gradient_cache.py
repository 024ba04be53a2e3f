"""Gradient caching (Gao et al., "Scaling Deep Contrastive Learning Batch Size", 2021): memory set by a chunk of texts.

A loss over all labels needs all their rows at once, but not all the activations that made them. Every chunk is encoded
without a gradient; the loss gives the gradient of the rows; then each chunk is encoded again, with the random state that it
had, and its part of that gradient is sent through. The result is the gradient of the whole graph, for one more encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dexml.encoders import Network
from dexml.types import Int64Array


@dataclass(frozen=True, eq=False)
class Chunk:
    """Texts that are encoded together: `tokens` as their network reads them, and `places` int64 (n), their rows of the side."""

    places: Tensor
    tokens: dict[str, Any]

    def to(self, device: torch.device) -> Chunk:
        """Return the chunk on a device."""
        tokens = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in self.tokens.items()}
        return Chunk(self.places.to(device), tokens)


class Texts:
    """Texts with the number of tokens of each, to be cut into chunks of at most `budget` tokens, padding counted."""

    def __init__(self, network: Network, texts: Sequence[str], budget: int) -> None:
        self.network = network
        self.texts = texts
        self.budget = budget
        self.lengths = network.lengths(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def chunks(self, numbers: Int64Array) -> list[Chunk]:
        """Return the texts `numbers` (n) in chunks of similar length, longest first, so that what does not fit fails at once.

        A text longer than the budget is a chunk of its own.
        """
        order = np.argsort(-self.lengths[numbers], kind="stable")
        chunks, start = [], 0
        while start < len(order):
            longest = max(1, int(self.lengths[numbers[order[start]]]))
            places = order[start : start + max(1, self.budget // longest)]
            tokens = self.network.tokenize([self.texts[numbers[place]] for place in places])
            chunks.append(Chunk(torch.from_numpy(places), tokens))
            start += len(places)
        return chunks


@dataclass(frozen=True, eq=False)
class RandomState:
    """The state of torch's generator on the CPU, and on the GPU in use."""

    cpu: Tensor
    cuda: Tensor | None

    @staticmethod
    def now(device: torch.device) -> RandomState:
        """Return the state as it is."""
        return RandomState(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)

    def restore(self, device: torch.device) -> None:
        """Put it back."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


Encode = Callable[[Chunk], Tensor]
Head = Callable[..., Tensor]


@torch.no_grad()
def rows_of(chunks: Sequence[Chunk], encode: Encode, device: torch.device, states: list[RandomState] | None = None) -> Tensor:
    """Return the rows (n, D) of all chunks of a side, each in its place; `states` gets the random state before each chunk."""
    total = sum(len(chunk.places) for chunk in chunks)
    rows: Tensor | None = None
    for chunk in chunks:
        if states is not None:
            states.append(RandomState.now(device))
        chunk = chunk.to(device)
        made = encode(chunk)
        if rows is None:
            rows = made.new_empty(total, made.shape[1])
        rows[chunk.places] = made
    assert rows is not None, "a side has at least one chunk"
    return rows


def cached_backward(sides: Sequence[Sequence[Chunk]], encode: Encode, head: Head, device: torch.device) -> Tensor:
    """Return the loss head(rows of side 1, rows of side 2, …), and add its gradient to every parameter behind it.

    Equals, in value, gradient and random numbers drawn, but not in memory:
    `head(*[cat([encode(chunk) for chunk in side]) for side in sides]).backward()`, the rows of each side in their places.
    `encode` must draw its random numbers from torch's generator. Beyond a chunk's activations the rows of all sides and their
    gradient are kept, n·D numbers each.
    """
    states: list[RandomState] = []
    rows = [rows_of(side, encode, device, states).requires_grad_() for side in sides]
    loss = head(*rows)
    loss.backward()  # type: ignore[no-untyped-call]
    after = RandomState.now(device)
    gradients = [side.grad for side in rows]
    loss = loss.detach()
    del rows
    remaining = iter(states)
    for chunks, gradient in zip(sides, gradients, strict=True):
        for chunk in chunks:
            state = next(remaining)
            if gradient is None:  # the head does not look at this side
                continue
            state.restore(device)
            chunk = chunk.to(device)
            torch.autograd.backward(encode(chunk), gradient[chunk.places])
    after.restore(device)
    return loss
