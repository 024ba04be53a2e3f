"""Scale and shift (SSF; Lian et al., "Scaling & Shifting Your Features", NeurIPS 2022): γ ⊙ x + β after linear and norm layers.

γ starts at 1 and β at 0, so that an attached model is the model it was. Both fold into the layer before them:
γ ⊙ (W·x + b) + β = (γ ⊙ W)·x + (γ ⊙ b + β), and a saved model costs and looks what it did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SCALE, SHIFT = "ssf_scale", "ssf_shift"


def attach(model: nn.Module) -> None:
    """Freeze `model` and give γ and β, its only trainable parameters from now on, to each linear and norm layer.

    A layer without a bias gets γ alone, so that it can be folded. Norms are torch's own, and those whose weight multiplies
    their output; others, such as Gemma's 1 + weight, and layers that share their weight are left as they are.
    """
    model.requires_grad_(False)
    uses = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    for layer in [module for module in model.modules() if _folds(module) and uses[id(module.weight)] == 1]:
        weight, bias = _parameters(layer)
        layer.register_parameter(SCALE, nn.Parameter(weight.new_ones(len(weight))))
        layer.register_parameter(SHIFT, None if bias is None else nn.Parameter(bias.new_zeros(len(weight))))
        layer.register_forward_hook(_scale_and_shift)


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Inside, every γ and β is folded into its layer and gone, as an exported model has it; after it, all is as before.

    Nothing happens to a model without any. Folded in float64 and rounded once.
    """
    attached = [module for module in model.modules() if isinstance(getattr(module, SCALE, None), nn.Parameter)]
    before = []
    for layer in attached:
        weight, bias = _parameters(layer)
        scale: nn.Parameter = getattr(layer, SCALE)
        shift: nn.Parameter | None = getattr(layer, SHIFT)
        before.append((layer, weight.data, None if bias is None else bias.data, scale, shift))
        factor = scale.detach().double()
        weight.data = (weight.data.double() * factor.reshape(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
        if bias is not None and shift is not None:
            bias.data = (bias.data.double() * factor + shift.detach().double()).to(bias.dtype)
        delattr(layer, SCALE)
        delattr(layer, SHIFT)
    try:
        yield
    finally:
        for layer, old_weight, old_bias, old_scale, old_shift in before:
            weight, bias = _parameters(layer)
            weight.data = old_weight
            if bias is not None and old_bias is not None:
                bias.data = old_bias
            layer.register_parameter(SCALE, old_scale)
            layer.register_parameter(SHIFT, old_shift)


def _scale_and_shift(layer: nn.Module, inputs: object, output: Tensor) -> Tensor:
    scale: Tensor | None = getattr(layer, SCALE, None)
    if scale is None:  # merged
        return output
    shift: Tensor | None = getattr(layer, SHIFT)
    scaled = output * scale.to(output.dtype)  # under autocast a layer's output is bfloat16
    return scaled if shift is None else scaled + shift.to(output.dtype)


def _parameters(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter | None]:
    weight, bias = layer.weight, getattr(layer, "bias", None)
    assert isinstance(weight, nn.Parameter)
    assert bias is None or isinstance(bias, nn.Parameter)
    return weight, bias


def _folds(module: nn.Module) -> bool:
    """Return whether a factor on the module's output is a factor on its weight, and a term on it one on its bias."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        return False
    if isinstance(module, nn.Linear):
        return True
    if weight.ndim != 1:
        return False
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return True
    return type(module).__name__.endswith("Norm") and getattr(module, "bias", None) is None and _multiplies(module, weight)


@torch.no_grad()
def _multiplies(norm: nn.Module, weight: nn.Parameter) -> bool:
    """Return whether twice the weight gives twice the output."""
    sample = torch.linspace(-1, 1, len(weight), dtype=weight.dtype, device=weight.device)[None]
    once = norm(sample)
    kept = weight.data
    weight.data = kept * 2
    twice = norm(sample)
    weight.data = kept
    return bool(torch.equal(twice, 2 * once)) and bool(once.any())
