"""Adapters of kernel features (SNNK; Sehanobish et al., ICLR 2024): h + Up(Ψ·Φ(h/‖h‖)) behind every block of a transformer.

Φ are random features whose directions stay as drawn (`dexml.kernel_features`); Ψ (r, m) and Up (d, r) are trained: r·m
numbers in place of the r·d of an adapter's first layer. Up starts at 0, so that an attached model is the model it was. As Φ is
not linear, nothing can be folded into the layers before it: adapters are saved beside the model, in a file of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from dexml.errors import InputError
from dexml.kernel_features import KernelFeatures

FILE = "snnk.safetensors"
NAME = "snnk"
RANK, FEATURES = 32, 128  # r and m


class KernelAdapter(nn.Module):
    """h + Up(Ψ·Φ(h/‖h‖)) of hidden states h (…, width)."""

    def __init__(self, width: int, rank: int = RANK, features: int = FEATURES, seed: int = 0) -> None:
        super().__init__()
        self.features = KernelFeatures(width, features, "relu", seed)
        drawn = torch.randn(rank, width, generator=torch.Generator().manual_seed(seed))
        self.psi = nn.Parameter(self.features.of_weights(normalize(drawn, dim=1)))
        self.up = nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the adapted states, in the number type that they come in."""
        rows = normalize(hidden, dim=-1)
        adapted: Tensor = hidden + self.up(self.features.of_inputs(rows) @ self.psi.T).to(hidden.dtype)
        return adapted


def attach(model: nn.Module, rank: int = RANK, features: int = FEATURES) -> None:
    """Freeze `model` and put an adapter, all that is trainable from now on, behind each of its blocks.

    Raises InputError where the model is no stack of blocks.
    """
    model.requires_grad_(False)
    configs: list[Any] = [part.config for part in model.modules() if hasattr(part, "config")]
    width = next((config.hidden_size for config in configs if hasattr(config, "hidden_size")), None)
    stack = blocks(model)
    if width is None or not stack:
        raise InputError("finetune.train: 'snnk' goes behind the blocks of a transformer, and this model is no stack of blocks")
    like = next(model.parameters())
    for number, block in enumerate(stack):
        block.add_module(NAME, KernelAdapter(width, rank, features, seed=number).to(like.device, like.dtype))
        block.register_forward_hook(_adapt)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the longest list of modules of one class, in order: a transformer's blocks."""
    lists = [list(part) for part in model.modules() if isinstance(part, nn.ModuleList)]
    alike = [list(run) for every in lists for _, run in groupby(every, type)]
    return max(alike, key=len, default=[])


def adapters(model: nn.Module) -> list[KernelAdapter]:
    """Return the adapters of a model, in the order of its blocks; none of a model that has none."""
    return [part for part in model.modules() if isinstance(part, KernelAdapter)]


@contextmanager
def taken_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model is as it was before `attach`; after it, all is as before."""
    found = [(part, part.get_submodule(NAME)) for part in model.modules() if NAME in part._modules]
    for part, _ in found:
        delattr(part, NAME)
    try:
        yield
    finally:
        for part, adapter in found:
            part.add_module(NAME, adapter)


def save(model: nn.Module, folder: Path) -> None:
    """Write the adapters of a model, where it has some, into `folder`."""
    tensors = {
        f"{number}.{name}": value.detach().cpu().contiguous()
        for number, adapter in enumerate(adapters(model))
        for name, value in adapter.state_dict().items()
    }
    if tensors:
        save_file(tensors, folder / FILE)


def load(model: nn.Module, folder: Path) -> None:
    """Attach the adapters that `save` left in `folder`, if any. Raises InputError that names a damaged file."""
    path = folder / FILE
    if not path.exists():
        return
    try:
        tensors = load_file(path)
        rank, features = tensors["0.psi"].shape
        attach(model, rank, features)
        for number, adapter in enumerate(adapters(model)):
            start = f"{number}."
            own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            adapter.load_state_dict(own)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise InputError(f"{path}: damaged, or of another model ({str(error).splitlines()[0]})") from None


def _adapt(block: nn.Module, inputs: object, output: Any) -> Any:
    adapter = block._modules.get(NAME)
    if adapter is None:  # taken off
        return output
    if isinstance(output, tuple):
        return (adapter(output[0]), *output[1:])
    return adapter(output)
