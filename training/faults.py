"""What a run says when it cannot go on: the step, the rows of its batch, and the checkpoint that is still good."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dexml.errors import InputError
from dexml.types import Int64Array
from training import checkpoint

FILE = "non_finite.json"
SHOWN = 8  # rows in the message; the file has them all


def not_finite(what: str, value: float, step: int, rows: Int64Array, texts: Sequence[str], out: Path) -> InputError:
    """Return the error for a loss or gradient that is no number; `rows` of the training split and their `texts` are the batch.

    All rows with their texts go to OUT/non_finite.json.
    """
    numbers = [int(row) for row in rows]
    shown = ", ".join(str(row) for row in sorted(numbers)[:SHOWN]) + (", …" if len(numbers) > SHOWN else "")
    batch = [{"row": row, "text": text} for row, text in sorted(zip(numbers, texts, strict=True))]
    path = out / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"step": step, what: str(value), "batch": batch}, indent=1, ensure_ascii=False), encoding="utf-8"
        )
        where = f" (all {len(numbers)} with their texts: {path})"
    except OSError:
        where = ""  # the message must come, whatever the disk is like
    return InputError(
        f"training: the {what} of step {step} is {value}; its batch is rows {shown} of the training split, from 0{where}; "
        f"{checkpoint.last_good(out)}; train anew with a lower training.rate_scale"
    )
