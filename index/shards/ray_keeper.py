"""Who looks after the copies: puts them on nodes, notices when one is gone or hangs, and opens its parts again elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dexml.errors import InputError
from index.shards.base import Loaded
from index.shards.ray_actor import actor_class
from index.shards.replicas import Replica

if TYPE_CHECKING:
    from index.shards.ray_engine import Layout

log = logging.getLogger(__name__)

EVERY_S = 0.5  # how often it looks
HUNG_S = 30.0  # at one call for longer, a copy is ended, and another one takes its place
LOAD_S = 3600.0  # to open a part
START_S = 120.0  # for all copies to be there at the start


class Keeper:
    """Places R copies of N shards, each on another node where there are several, and places those anew that are lost."""

    def __init__(
        self,
        ray: Any,
        layout: Layout,
        copies: Sequence[Sequence[Replica]],
        folders: Mapping[str, Sequence[Path]],
        lock: threading.Lock,
    ) -> None:
        self._ray = ray
        self._layout = layout
        self._copies = copies
        self._folders = folders
        self._lock = lock
        self._pings: dict[Any, tuple[Replica, Any]] = {}
        self._returning: set[Replica] = set()  # each in a thread of its own: a version takes as long to load as it takes
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._class = actor_class(ray)
        self._thread = threading.Thread(target=self._run, name="dexml-shards", daemon=True)

    def start(self) -> None:
        """Look after them from now on."""
        self._thread.start()

    def stop(self) -> None:
        """End, once what is being done is done."""
        self._ended.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(2 * EVERY_S)

    def place_all(self) -> None:
        """Give every copy its process. Raises InputError when the cluster has no room for them."""
        every = [replica for copies in self._copies for replica in copies]
        calls = {}
        wanted, held = self._layout.gpus * len(every), self._ray.cluster_resources().get("GPU", 0)
        if wanted > held:
            raise InputError(f"Ray: {len(every)} shards need {wanted:g} GPUs, and the cluster has {held:g} (--shard-gpus)")
        for replica in every:
            replica.actor, replica.node = self._made(replica)
            calls[replica.actor.where.remote()] = replica
        done, waiting = self._ray.wait(list(calls), num_returns=len(calls), timeout=START_S)
        try:
            for ref in done:
                calls[ref].node = self._ray.get(ref)[0]
        except self._ray.exceptions.RayError as error:
            raise InputError(f"Ray: a shard's process ended at its start ({type(error).__name__})") from None
        if waiting:
            have = self._ray.cluster_resources().get("CPU", 0)
            raise InputError(
                f"Ray: after {START_S:.0f} s {len(waiting)} of {len(calls)} shards have no place; they need "
                f"{self._layout.cpus:g} CPUs each, and the cluster has {have:g} (--shards, --replicas, --shard-cpus)"
            )

    def lost(self, replica: Replica, actor: Any) -> None:
        """Note that the process behind a copy is gone: another one is made as soon as may be."""
        with self._lock:
            if replica.actor is not actor:  # long since
                return
            replica.actor, replica.node = None, ""
            replica.loaded.clear()
            replica.late.clear()
        self._ray.kill(actor)  # where it was only out of reach, nobody is to come back with its share of the CPUs
        self._wake.set()

    def stale(self, replica: Replica, key: str) -> None:
        """Note that a copy has not the version that it should have: it is to load it again."""
        replica.loaded.discard(key)
        self._wake.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wake.wait(EVERY_S)
            self._wake.clear()
            try:
                self._look()
            except Exception:  # whatever Ray is at: the next look may find it well
                if not self._ended.is_set():
                    log.exception("looking after the shards failed")

    def _look(self) -> None:
        for replica in [replica for copies in self._copies for replica in copies]:
            if self._ended.is_set():
                return
            if replica.actor is not None and replica.silent_s() > HUNG_S:
                log.warning("shard %d, copy %d, hangs and is ended", replica.shard, replica.number)
                self.lost(replica, replica.actor)
            if replica.actor is None:
                if replica not in self._returning:
                    self._returning.add(replica)
                    threading.Thread(target=self._bring_back, args=(replica,), name="dexml-shard", daemon=True).start()
            elif missing := [key for key in list(self._folders) if key not in replica.loaded]:
                self._load(replica, replica.actor, missing)
            elif not any(pinged is replica for pinged, _ in self._pings.values()):
                self._pings[replica.actor.where.remote()] = replica, replica.actor
        self._take_pings()

    def _take_pings(self) -> None:
        """Find out which copies are gone although nobody asked them anything."""
        if not self._pings:
            return
        for ref in self._ray.wait(list(self._pings), num_returns=len(self._pings), timeout=0)[0]:
            replica, actor = self._pings.pop(ref)
            try:
                self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                if replica.actor is actor:
                    log.warning("shard %d, copy %d, is gone: %s", replica.shard, replica.number, type(error).__name__)
                    self.lost(replica, actor)

    def _bring_back(self, replica: Replica) -> None:
        """Give a lost copy a new process, and all that is served; without success the next look tries again."""
        try:
            with self._lock:
                actor, replica.node = self._made(replica)
            if not self._opened(replica, actor):
                replica.node = ""
                self._ray.kill(actor)
        except Exception:  # whatever Ray is at
            replica.node = ""
            if not self._ended.is_set():
                log.exception("shard %d, copy %d, could not be started", replica.shard, replica.number)
        finally:
            self._returning.discard(replica)

    def _opened(self, replica: Replica, actor: Any) -> bool:
        """Let a new process open all that is served; it is asked from then on."""
        where = actor.where.remote()
        if not self._done(where, START_S):
            return False
        node = self._ray.get(where)[0]
        started = time.monotonic()
        with self._lock:
            keys = list(self._folders)
        if not self._load(replica, actor, keys):
            return False
        with self._lock:
            replica.actor, replica.node = actor, node
        log.warning("shard %d, copy %d, is back after %.1f s", replica.shard, replica.number, time.monotonic() - started)
        return True

    def _load(self, replica: Replica, actor: Any, keys: Sequence[str]) -> bool:
        for key in keys:
            folders = self._folders.get(key)
            if folders is None:  # dropped meanwhile
                continue
            call = actor.load.remote(key, str(folders[replica.shard]))
            if not self._done(call, LOAD_S):
                return False
            told: Loaded = self._ray.get(call)
            if told.fault:
                log.error("shard %d, copy %d: %s", replica.shard, replica.number, told.fault)
                return False
            replica.loaded.add(key)
        return True

    def _done(self, call: Any, limit_s: float) -> bool:
        """Wait for a call, and return whether it went well; not when we are to end, or it takes for ever."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until and not self._ended.is_set():
            if self._ray.wait([call], timeout=EVERY_S)[0]:
                try:
                    self._ray.get(call)
                except self._ray.exceptions.RayError as error:
                    log.warning("a shard's process ended at its start: %s", type(error).__name__)
                    return False
                return True
        return False

    def _made(self, replica: Replica) -> tuple[Any, str]:
        """Return a new process for a copy, and the node that it is meant for: one without another copy, if possible."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        beside = {other.node for other in self._copies[replica.shard] if other is not replica and other.node}
        everywhere = [other.node for copies in self._copies for other in copies if other.node]
        needs = {"CPU": self._layout.cpus, "GPU": self._layout.gpus}
        options: dict[str, Any] = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"], "max_restarts": 0, "max_task_retries": 0}
        node = ""
        if roomy := [
            node["NodeID"]
            for node in self._ray.nodes()
            if node["Alive"]
            and all(node["Resources"].get(of, 0) >= need * (1 + everywhere.count(node["NodeID"])) for of, need in needs.items())
        ]:
            node = min(roomy, key=lambda name: (name in beside, everywhere.count(name), name))
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        return self._class.options(**options).remote(), node


__all__ = ["Keeper"]
