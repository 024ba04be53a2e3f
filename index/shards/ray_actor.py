"""A shard as a Ray actor. Nothing heavy is imported before Ray has set how many threads the process may use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from index.shards.base import Loaded, Question, Reply, Step

if TYPE_CHECKING:
    from index.shards.shard import Shard

LOADING = "loading"  # the group of methods that run beside the searches


class LabelShard:
    """One copy of one shard: its methods are those of `Shard`."""

    def __init__(self) -> None:
        self._shard: Shard | None = None

    def where(self) -> tuple[str, int]:
        """Return the id of its node and of its process."""
        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def load(self, key: str, folder: str) -> Loaded:
        """Open a part (`Shard.load`); searches go on meanwhile."""
        from index.shards.shard import Shard

        if self._shard is None:
            self._shard = Shard()
        return self._shard.load(key, folder)

    def drop(self, key: str) -> None:
        """Let go of a part."""
        if self._shard is not None:
            self._shard.drop(key)

    def change(self, key: str, step: int, changes: Sequence[Step]) -> None:
        """Make changes (`Shard.change`)."""
        if self._shard is not None:
            self._shard.change(key, step, changes)

    def answer(self, question: Question, step: int) -> Reply:
        """Return an answer (`Shard.answer`)."""
        return Reply(question.key, -1) if self._shard is None else self._shard.answer(question, step)


def actor_class(ray: Any) -> Any:
    """Return the actor: searches and changes one at a time, and beside them what is done once in a while."""
    for method in (LabelShard.load, LabelShard.where):
        ray.method(concurrency_group=LOADING)(method)
    return ray.remote(concurrency_groups={LOADING: 1})(LabelShard)


__all__ = ["LabelShard", "actor_class"]
