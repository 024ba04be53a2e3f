"""⊥Grad: the part of each gradient that only scales its weights is left out (Prieto et al., 2025, arXiv 2501.04697).

Once every row is answered right, the way down that cross-entropy likes best is to scale all weights up: scores grow, and with
them the gaps, until softmax gradients are lost in the number type. For each tensor w with gradient g, both flattened,

    g⊥ = g − (w·g / w·w) w,    and the base optimizer is given g⊥ ‖g‖/‖g⊥‖.

w is taken where g is not 0, unlike in the paper: g⊥ is orthogonal to all of w nevertheless, and a row of a table that a batch
never looked at gets no gradient. The paper's would be a trace of that row, and Adam makes whole steps of traces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dexml.kernels.reference import at_least_float32
from training.optimizers.adamw import AdamW
from training.optimizers.base import Optimization, Total

TINY = 1e-30  # added to w·w, which is 0 where a tensor starts at 0: its gradient then passes as it is
NOISE = 4  # ‖g⊥‖/‖g‖ in units of the number type's epsilon, below which g⊥ is rounding and no direction


class OrthoGrad(torch.optim.Optimizer):
    """Any torch optimizer, given projected gradients. State, parameter groups and defaults are the base's own.

    Schedulers, checkpoints and whatever else reads or loads them so find one optimizer, not two. A tensor of one element has
    nothing orthogonal to it: its gradient passes as it is. One that is parallel to its weights but for rounding becomes 0.
    `total` is for parameters of which this process holds a part.
    """

    base: torch.optim.Optimizer
    total: Total | None

    def __init__(self, base: torch.optim.Optimizer, total: Total | None = None) -> None:
        # Not Optimizer.__init__, which would make groups and state of its own; this makes its hooks alone.
        self.__setstate__({"base": base, "total": total})

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle keeps."""
        return {"base": self.base, "total": self.total}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base's."""
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base's."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base's."""
        return self.base.defaults

    def state_dict(self) -> dict[str, Any]:
        """Return the base's: the wrapper has no state."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the base's, made with the wrapper or without."""
        self.base.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Give the base another group."""
        self.base.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.base.zero_grad(set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Project the gradients in place, those that `closure` leaves where there is one, and let the base step."""
        if closure is None:
            self.project()
            self.base.step()
            return None

        def projected() -> float:
            with torch.enable_grad():
                value = closure()
            self.project()
            return value

        return self.base.step(projected)

    @torch.no_grad()
    def project(self) -> None:
        """Overwrite every gradient with its rescaled projection."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if weight.grad.is_sparse:
                    weight.grad = weight.grad.coalesce()
                    project_(weight.grad.values(), weight.sparse_mask(weight.grad).values(), self.total)
                else:
                    project_(weight.grad, weight, self.total)


def project_(gradient: Tensor, weight: Tensor, total: Total | None = None) -> None:
    """Overwrite a gradient by its part orthogonal to the weight, at its own length; halves are summed in float32."""
    if weight.numel() < 2:
        return
    g = at_least_float32(gradient)
    w = torch.where(g == 0, 0, at_least_float32(weight))

    def summed(*pairs: tuple[Tensor, Tensor]) -> Tensor:
        sums = torch.stack([torch.dot(a.reshape(-1), b.reshape(-1)).double() for a, b in pairs])
        return sums if total is None else total(weight, sums)

    of_weight, along, before = summed((w, w), (w, g), (g, g))
    g.addcmul_(w, (-along / (of_weight + TINY)).to(g.dtype))
    # Twice: what rounding left along w would be scaled up with a short remainder.
    g.addcmul_(w, (-summed((w, g))[0] / (of_weight + TINY)).to(g.dtype))
    after = summed((g, g))[0]
    is_direction = after > before * (NOISE * torch.finfo(gradient.dtype).eps) ** 2
    g.mul_(torch.where(is_direction, (before / after).sqrt(), 0.0).to(g.dtype))
    if g is not gradient:
        gradient.copy_(g)


class OrthoGradAdamW(Optimization):
    """AdamW of gradients orthogonal to their weights (⊥Grad)."""

    def make(self, groups: list[dict[str, Any]], total: Total) -> torch.optim.Optimizer:
        """Return the wrapped optimizer over the groups."""
        return OrthoGrad(AdamW().make(groups, total), total)
