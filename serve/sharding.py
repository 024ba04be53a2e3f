"""Labels spread over shards, as the service has them: started where that is safe, and told of when one is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dexml.errors import InputError
from index.shards import ShardsMissing, TooLate
from serve.errors import Problem
from serve.settings import Settings

if TYPE_CHECKING:
    from index.retriever import Retriever

RETRY = {"Retry-After": "1"}


def check(settings: Settings) -> None:
    """Raise InputError, in the words of the options of `dexml serve`, unless the shards may be started."""
    if settings.engine == "local":
        asked = [
            option
            for option, given, default in (
                ("--shards", settings.shards, 1),
                ("--replicas", settings.replicas, 1),
                ("--shard-gpus", settings.shard_gpus, 0),
                ("--ray-address", settings.ray_address, None),
            )
            if given != default
        ]
        if asked:
            raise InputError(f"{asked[0]}: one process holds all labels; --engine ray spreads them")
        return
    from index.shards import ray_cluster

    ray_cluster.check(settings.ray_address)


def open_retriever(settings: Settings) -> Retriever:
    """Return a retriever whose labels are on shards. Raises InputError where Ray cannot be had, or a shard cannot load."""
    from index.retriever import Retriever
    from index.shards.index import ShardedIndex
    from index.shards.ray_engine import Layout, RayEngine

    assert settings.bundle is not None
    layout = Layout(settings.shards, settings.replicas, settings.shard_cpus, settings.ray_address, settings.shard_gpus)
    engine = RayEngine(layout)
    try:
        return Retriever.open(settings.bundle, writable=settings.writable, spread=ShardedIndex.on(engine))
    except BaseException:
        engine.close()
        raise


def told(error: BaseException) -> Problem | None:
    """Return what a client is told of shards that do not answer, or not in time; None for any other error."""
    if isinstance(error, TooLate):
        return Problem("deadline_exceeded", "a shard gave no answer within the deadline")
    if isinstance(error, ShardsMissing):
        count = len(error.shards)
        what = "a shard of the labels does" if count == 1 else f"{count} shards of the labels do"
        return Problem("shard_unavailable", f"{what} not answer; allow_partial takes what the others have", headers=RETRY)
    return None


def check_up(store: Any) -> None:
    """Raise Problem unless every shard answers, so that whoever balances load asks another instance."""
    if missing := [shard for shard, up in enumerate(store.live.index.up) if not up]:
        problem = told(ShardsMissing(missing))
        assert problem is not None
        raise problem


__all__ = ["check", "check_up", "open_retriever", "told"]
