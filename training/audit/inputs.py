"""What of a query can be perturbed: its token embeddings, as the transformer and the feature table read them.

A text is discrete; the vectors that stand for its tokens are where a gradient ends. B queries of T tokens and n table features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dexml.errors import InputError
from dexml.model import DualEncoder
from dexml.towers import Tower
from dexml.types import Bag, Features


class Inputs:
    """The query tower as a function of what is added to the token embeddings of B `texts`.

    There is a part for a transformer, float32 (B, T, H), and one for a feature table, (n, D), each where the tower reads it.
    """

    def __init__(self, model: DualEncoder, texts: Sequence[str]) -> None:
        encoder, tower = model.encoder, model.tower.eval()
        self.texts = tuple(texts)
        self._side = _QuerySide(tower)
        self._table: Tensor | None = getattr(tower, "table", None)
        self._bag = encoder.bags(texts) if "bag" in tower.reads else None
        self._network = None
        self.plain: list[Tensor] = []
        self.masks: list[Tensor] = []
        if "dense" in tower.reads:
            if not encoder.tunable:
                raise InputError(f"audit: the encoder {model.encoder_name!r} has no token embeddings to perturb")
            self._network = encoder.network()
            self._network.module.eval()
            self._tokens = self._network.tokenize(texts)
            self._layer = _embeddings(self._network.module)
            self.plain.append(self._layer(self._tokens["input_ids"]).detach())
            self.masks.append(self._tokens["attention_mask"][:, :, None].float())
        if self._bag is not None:
            if self._table is None:
                raise InputError(f"audit: the tower {model.tower_name!r} has no feature table to perturb")
            self.plain.append(self._table.detach()[self._bag.features])
            self.masks.append(torch.ones(len(self._bag.features), 1))
            self._owners = torch.repeat_interleave(torch.arange(len(self._bag)), self._bag.offsets.diff())

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, added: Sequence[Tensor]) -> Tensor:
        """Return the unit rows (B, D) of the queries with `added` on their embeddings, differentiable in it."""
        parts = iter(zip(added, self.masks, self.plain, strict=True))
        dense = bag = None
        if self._network is not None:
            delta, mask, _ = next(parts)
            with _shifted(self._layer, delta * mask):
                dense = self._network.rows(self._tokens)
        changed: dict[str, Tensor] = {}
        if self._bag is not None:
            delta, _, plain = next(parts)
            bag = Bag(self._bag.offsets, torch.arange(len(plain)), self._bag.weights)
            changed = {"tower.table": plain + delta}
        rows: Tensor = functional_call(self._side, changed, (Features(dense, bag),))
        return rows

    def energy(self, added: Sequence[Tensor]) -> Tensor:
        """Return ‖δ‖² of each query (B), over all that belongs to it; padding does not count."""
        total = torch.zeros(len(self))
        for delta, mask in zip(added, self.masks, strict=True):
            squares = (delta * mask).square()
            if delta.ndim == 3:
                total = total + squares.sum(dim=(1, 2))
            else:
                total = total.index_add(0, self._owners, squares.sum(dim=1))
        return total

    def start(self, scale: float, seed: int) -> list[Tensor]:
        """Return a δ of `scale` times standard normal numbers, to be optimised."""
        random = np.random.default_rng(seed)
        return [
            torch.from_numpy(scale * random.standard_normal(part.shape, dtype=np.float32)).requires_grad_()
            for part in self.plain
        ]

    def nothing(self) -> list[Tensor]:
        """Return a δ of 0."""
        return [torch.zeros_like(part) for part in self.plain]

    @property
    def norms(self) -> Tensor:
        """The norm of each query's unperturbed embeddings (B), which that of δ is compared with."""
        return self.energy(self.plain).sqrt()


class _QuerySide(nn.Module):
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, features: Features) -> Tensor:
        return self.tower.queries(features)


def _embeddings(module: nn.Module) -> nn.Module:
    """Return the layer that makes a transformer's token embeddings."""
    for part in module.modules():
        find: Any = getattr(part, "get_input_embeddings", None)
        if find is not None and isinstance(layer := find(), nn.Module):
            return layer
    raise InputError("audit: this transformer does not say which layer makes its token embeddings")


@contextmanager
def _shifted(layer: nn.Module, delta: Tensor) -> Iterator[None]:
    """Add `delta` to what a layer gives."""
    hook = layer.register_forward_hook(lambda module, given, made: made + delta)
    try:
        yield
    finally:
        hook.remove()
