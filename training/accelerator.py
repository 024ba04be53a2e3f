"""Where a fine-tune runs and in which precision: accelerate's choice of device, and bfloat16 where it is fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dexml.device import fast_bfloat16
from dexml.errors import InputError
from training.config import FinetuneSection

if TYPE_CHECKING:
    from accelerate import Accelerator


def accelerator(section: FinetuneSection) -> tuple[Accelerator, str]:
    """Return an accelerator for the device and precision of `section`, and both in words.

    Raises InputError for a device that is not there.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    # Both are process-wide and keep their first settings; a second run in one process, such as a refit, has its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    device = PartialState(cpu=section.device == "cpu").device
    if section.device == "cuda" and device.type != "cuda":
        raise InputError(f"finetune.device: 'cuda' was asked for, but accelerate finds no NVIDIA GPU, only {device.type!r}")
    precision, reason = section.precision, "as asked for"
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else fast_bfloat16()
        fast = fast and device.type in ("cpu", "cuda")
        precision, reason = ("bfloat16", "which is fast there") if fast else ("float32", "bfloat16 is not fast there")
    made = Accelerator(cpu=section.device == "cpu", mixed_precision="bf16" if precision == "bfloat16" else "no")
    return made, f"on {device}, products in {precision}, {reason}"
