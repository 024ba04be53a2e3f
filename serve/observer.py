"""What the owner of the model tells of its work, to whoever counts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from index.retriever import Found
from index.store import Written
from serve.tickets import Edit, Ticket

Swap = Literal["ok", "refused", "failed"]


class Observer:
    """Told of every event, by the thread it happens in; these methods do nothing. An override must be quick and not raise."""

    def loaded(self, seconds: float) -> None:
        """Note that the model and the index were opened and warmed."""

    def batched(self, batch: Sequence[Ticket], found: Found, started: float) -> None:
        """Note that a batch was answered; `started` is when its work began (monotonic seconds)."""

    def written(self, edit: Edit, written: Written | None, problem: str | None) -> None:
        """Note a write that was made, or the code of what stood against it."""

    def swapped(self, result: Swap) -> None:
        """Note that another version serves, was not fit to, or could not be made."""
