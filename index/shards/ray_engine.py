"""Shards as Ray actors: questions scattered to one copy of each, to a second one where the first is slow, and gathered.

Searching and changing come from the front's one thread; a second thread looks after the copies (`ray_keeper`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.patience import Patience
from index.shards.base import Engine, Loaded, Question, Reply, ShardsMissing, Step, TooLate, refused
from index.shards.ray_cluster import start, stop
from index.shards.ray_keeper import Keeper
from index.shards.replicas import Call, Delays, Replica

log = logging.getLogger(__name__)

LONGEST_S = 60.0  # for an answer that has no deadline
PART = 0.8  # of the time that is left, after which a partial answer goes without those who have not answered
PING_S = 10.0  # without an answer to the simplest question, a copy that should be loading hangs
TICK_S = 0.5  # how long a wait for loading lasts at most before the world is looked at again


@dataclass(frozen=True)
class Layout:
    """N shards in R copies each, each with `cpus` and `gpus` to itself, on the Ray cluster at `address` or one of our own.

    An index of FAISS goes on the GPU that its shard has; the exact index scans on CPUs.
    """

    shards: int
    replicas: int = 1
    cpus: float = 1.0
    address: str | None = None
    gpus: float = 0.0


class RayEngine(Engine):
    """N shards in R copies, each copy an actor. Raises InputError where the cluster cannot be had."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.shards = layout.shards
        self._ray = start(layout.address, layout.cpus * layout.shards * layout.replicas, layout.gpus > 0)
        self._copies = [[Replica(shard, number) for number in range(layout.replicas)] for shard in range(layout.shards)]
        self._delays = [Delays() for _ in range(layout.shards)]
        self._closed = False
        self._folders: dict[str, Sequence[Path]] = {}
        self._lock = threading.Lock()  # of the above; never held while anything is waited for
        self._keeper = Keeper(self._ray, layout, self._copies, self._folders, self._lock)
        try:
            self._keeper.place_all()
        except BaseException:
            self.close()
            raise
        self._keeper.start()

    def close(self) -> None:
        """End the copies and let go of the cluster; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        self._keeper.stop()
        for replica in self._every():
            if replica.actor is not None:
                self._ray.kill(replica.actor)
        stop(self._ray, self.layout.address)

    @property
    def up(self) -> tuple[int, ...]:
        """How many copies of each shard answer."""
        if not self._closed:
            self._look_after_late()
        return tuple(sum(replica.up for replica in copies) for copies in self._copies)

    def describe(self) -> dict[str, object]:
        """Return the layout, and on how many nodes it is."""
        nodes = {replica.node for replica in self._every() if replica.actor is not None}
        return {
            "engine": f"ray {self._ray.__version__}",
            "shards": self.shards,
            "replicas": self.layout.replicas,
            "nodes": len(nodes),
            "up": list(self.up),
        }

    def load(self, key: str, folders: Sequence[Path]) -> list[Loaded]:
        """Let all copies open their parts; those that are down get theirs when they are back (`Keeper`)."""
        with self._lock:
            self._folders[key] = folders
            targets = [replica for replica in self._every() if replica.up]
        calls: dict[Any, tuple[Replica, Any]] = {}
        for replica in targets:
            if (actor := replica.actor) is not None:
                calls[actor.load.remote(key, str(folders[replica.shard]))] = replica, actor
        told: dict[int, Loaded] = {}
        while calls:
            done, _ = self._ray.wait(list(calls), num_returns=1, timeout=TICK_S)
            for ref in done:
                replica, actor = calls.pop(ref)
                answer = self._got(ref, replica, actor)
                if isinstance(answer, Loaded):
                    if not answer.fault:
                        replica.loaded.add(key)
                    if not told.get(replica.shard, answer).fault:
                        told[replica.shard] = answer
            if not done and all(self._hangs(replica) for replica, _ in calls.values()):
                break
        every = [told.get(shard, Loaded("none of its copies answers")) for shard in range(self.shards)]
        try:
            refused(every)
        except ValueError:
            self.drop(key)
            raise
        return every

    def drop(self, key: str) -> None:
        """Let go of a version."""
        with self._lock:
            self._folders.pop(key, None)
        if not self._closed:
            for replica in self._every():
                replica.loaded.discard(key)
                if replica.actor is not None:
                    replica.actor.drop.remote(key)

    def change(self, key: str, shard: int, step: int, change: Step) -> None:
        """Send a change to all copies of a shard: it overtakes no question, and no question overtakes it."""
        for replica in self._copies[shard]:
            if replica.actor is not None and key in replica.loaded:
                replica.actor.change.remote(key, step, [change])

    def ask(self, question: Question, patience: Patience, missed: Callable[[int, int], Sequence[Step]]) -> list[Reply | None]:
        """Return the answers of all shards (`Engine.ask`)."""
        self._look_after_late()
        return _Gathering(self, question, patience, missed).run()

    def _every(self) -> list[Replica]:
        return [replica for copies in self._copies for replica in copies]

    def _got(self, ref: Any, replica: Replica, actor: Any) -> Any:
        """Return what came of a call, None where the process `actor` or its node is gone."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError:
            log.exception("shard %d, copy %d, failed", replica.shard, replica.number)
            return None
        except self._ray.exceptions.RayError as error:
            if replica.actor is actor:
                log.warning("shard %d, copy %d, is gone: %s", replica.shard, replica.number, type(error).__name__)
                self._keeper.lost(replica, actor)
            return None

    def _look_after_late(self) -> None:
        """Find out which late calls have come in since."""
        late = {ref: replica for replica in self._every() for ref in list(replica.late)}
        if not late:
            return
        for ref in self._ray.wait(list(late), num_returns=len(late), timeout=0)[0]:
            actor = late[ref].actor
            if late[ref].late.pop(ref, None) is not None:
                self._got(ref, late[ref], actor)

    def _hangs(self, replica: Replica) -> bool:
        """Return whether a copy does not even answer the simplest question."""
        if (actor := replica.actor) is None:
            return True
        ping = actor.where.remote()
        if self._ray.wait([ping], timeout=PING_S)[0]:
            return self._got(ping, replica, actor) is None
        replica.late[ping] = time.monotonic()
        return True


class _Gathering:
    """One question on its way: who has been asked, who has answered, and who is asked next."""

    def __init__(
        self, engine: RayEngine, question: Question, patience: Patience, missed: Callable[[int, int], Sequence[Step]]
    ) -> None:
        self._engine, self._question, self._patience, self._missed = engine, question, patience, missed
        now = time.monotonic()
        self._until = now + LONGEST_S if patience.until is None else patience.until
        if patience.partial:
            self._until = now + PART * (self._until - now)
        self._calls: dict[Any, Call] = {}
        self._tried: list[set[Replica]] = [set() for _ in range(engine.shards)]
        self._hedge_at = [now + delay.hedge_s for delay in engine._delays]
        self._replies: list[Reply | None] = [None] * engine.shards
        self._open = set(range(engine.shards))
        self._failed: set[int] = set()

    def run(self) -> list[Reply | None]:
        """Return the answers. Raises TooLate and ShardsMissing."""
        for shard in range(self._engine.shards):
            self._ask_another(shard)
        late = False
        while self._open and not (self._failed and not self._patience.partial):
            now = time.monotonic()
            late = now >= self._until
            if late:
                break
            wait_s = min([self._until, *(self._hedge_at[shard] for shard in self._open)]) - now
            done, _ = self._engine._ray.wait(list(self._calls), num_returns=1, timeout=max(0.0, wait_s))
            for ref in done:
                self._take(ref, self._calls.pop(ref))
            self._hedge()
        for ref, call in self._calls.items():
            if call.actor is call.replica.actor:
                call.replica.late[ref] = call.sent
        return self._outcome(late)

    def _outcome(self, late: bool) -> list[Reply | None]:
        missing = self._failed | self._open if late or self._failed else set()
        if not missing:
            return self._replies
        if self._patience.partial and len(missing) < self._engine.shards:
            self._patience.missing |= missing
            return self._replies
        if self._failed:
            raise ShardsMissing(sorted(self._failed))
        raise TooLate

    def _take(self, ref: Any, call: Call) -> None:
        replica, shard = call.replica, call.replica.shard
        reply = self._engine._got(ref, replica, call.actor)
        if shard not in self._open:  # another copy was quicker
            return
        step = self._question.steps[shard]
        if isinstance(reply, Reply) and reply.ids is not None and (reply.key, reply.step) == (self._question.key, step):
            self._engine._delays[shard].note(time.monotonic() - call.sent)
            self._replies[shard] = reply
            self._open.discard(shard)
        elif isinstance(reply, Reply) and 0 <= reply.step < step and not call.again:
            # It was away, and has missed changes: what it would say is of another moment. It gets them, and is asked again.
            call.actor.change.remote(self._question.key, reply.step + 1, self._missed(shard, reply.step))
            self._send(replica, again=True)
        else:
            if isinstance(reply, Reply):
                self._engine._keeper.stale(replica, self._question.key)
            if not any(out.replica.shard == shard for out in self._calls.values()):
                self._ask_another(shard)

    def _hedge(self) -> None:
        now = time.monotonic()
        for shard in self._open:
            if now >= self._hedge_at[shard]:
                self._hedge_at[shard] = self._until
                if replica := self._next(shard):
                    self._send(replica)

    def _ask_another(self, shard: int) -> None:
        """Ask a copy that was not asked yet; without one, the shard has failed."""
        replica = self._next(shard)
        if replica is not None:
            self._send(replica)
        else:
            self._open.discard(shard)
            self._failed.add(shard)

    def _next(self, shard: int) -> Replica | None:
        """Return the copy that was asked least of those that may answer, one that owes no answer first."""
        ready = [
            replica
            for replica in self._engine._copies[shard]
            if replica.up and self._question.key in replica.loaded and replica not in self._tried[shard]
        ]
        return min(ready, key=lambda replica: (len(replica.late), replica.asked), default=None)

    def _send(self, replica: Replica, again: bool = False) -> None:
        actor = replica.actor
        if actor is None:  # lost between being chosen and being asked
            self._open.discard(replica.shard)
            self._failed.add(replica.shard)
            return
        replica.asked += 1
        self._tried[replica.shard].add(replica)
        ref = actor.answer.remote(self._question, self._question.steps[replica.shard])
        self._calls[ref] = Call(replica, actor, again=again)


__all__ = ["Layout", "RayEngine"]
