"""Shuffled, seeded minibatches of row numbers that can stop anywhere and go on exactly there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dexml.errors import InputError
from dexml.types import Int64Array


class Batches:
    """Minibatches over `rows` rows; each `for` runs one epoch, or what is left of one after `load_state_dict`.

    The order depends on (seed, epoch) alone. The last batch of an epoch holds what is left over and is never empty.
    `epoch` is the epoch of the batch last given, from 0; `batch` how many of its batches were given.
    """

    def __init__(self, rows: int, size: int, seed: int = 0) -> None:
        if rows < 1:
            raise InputError(f"batches: at least one row is needed, got {rows}")
        if size < 1:
            raise InputError(f"batches: the batch size must be at least 1, got {size}")
        if seed < 0:
            raise InputError(f"batches: the seed must be at least 0, got {seed}")
        self.rows = rows
        self.size = size
        self.seed = seed
        self.epoch = 0
        self.batch = 0

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        return -(-self.rows // self.size)

    def __iter__(self) -> Iterator[Int64Array]:
        """Yield int64 row numbers (≤ size) up to the end of the epoch; the next call starts the next one."""
        # A batch counts as given when it is handed out, so a state taken after its step goes on with the next batch.
        self.epoch, self.batch = self._next()
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows)
        while self.batch < len(self):
            start = self.batch * self.size
            self.batch += 1
            yield order[start : start + self.size]

    def state_dict(self) -> dict[str, int]:
        """Return where the next batch comes from, as JSON can hold it."""
        epoch, batch = self._next()
        return {"rows": self.rows, "size": self.size, "seed": self.seed, "epoch": epoch, "batch": batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises InputError when it belongs to other rows, another size or seed."""
        for name in ("rows", "size", "seed"):
            if state.get(name) != getattr(self, name):
                raise InputError(f"batches: the state has {name} {state.get(name)!r}, this run {getattr(self, name)!r}")
        epoch, batch = state.get("epoch"), state.get("batch")
        if not isinstance(epoch, int) or not isinstance(batch, int) or epoch < 0 or not 0 <= batch < len(self):
            raise InputError(f"batches: the state says epoch {epoch!r}, batch {batch!r} of {len(self)}")
        self.epoch, self.batch = epoch, batch

    def _next(self) -> tuple[int, int]:
        return (self.epoch + 1, 0) if self.batch == len(self) else (self.epoch, self.batch)
