"""One thread owns the model, the index and numba; request threads hand it work and wait.

Admission never blocks (429 when full), every request has a deadline (504), compatible requests travel in one batch, and
work that nobody waits for any more is dropped before it costs anything.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from index.patience import Patience
from index.retriever import Found, Normalize, Retriever
from serve import edits
from serve.embeddings import embed_all
from serve.errors import Problem
from serve.observer import Observer
from serve.settings import Settings
from serve.sharding import told
from serve.tickets import Ask, Edit, Encode, Serving, Ticket
from serve.turns import Turns, aside
from serve.upkeep import Upkeep

log = logging.getLogger("dexml.serve")

SPARE = 16  # requests under way that do not count: probes, and what is answered already
PAUSES = 5  # how many times longer a batch waits while requests are being read

ENDED = "the thread that owns the model has ended"


class Worker:
    """The thread that owns the model, and the bounded queue in front of it."""

    def __init__(
        self,
        open_retriever: Callable[[], Retriever],
        settings: Settings,
        observer: Observer | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._open = open_retriever
        self._settings = settings
        self._observer = observer or Observer()
        self._turns = turns or Turns()
        self._changed = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._inflight = 0  # queued and running
        self._batch_since: float | None = None  # when the thread began its batch (monotonic seconds)
        self._stopping = False
        self._gathered = 0  # queries of the last batch
        self._crowded = False  # the last batch held several requests, so a short wait may gather several again
        self._request_s = 0.01  # running mean of seconds per request, for Retry-After
        self._loaded = threading.Event()
        self.upkeep = Upkeep(self._observer)
        self._thread = threading.Thread(target=self._live, name="dexml-model", daemon=True)
        self.draining = False  # a plain flag: a signal handler sets it
        self.serving: Serving | None = None
        self.failure: BaseException | None = None  # why nothing will be answered any more

    def start(self) -> None:
        """Start the thread; it loads the model first."""
        self._thread.start()

    def wait_until_loaded(self, timeout: float | None = None) -> bool:
        """Wait until loading ended, well (`serving` is set) or badly (`failure` is); False on timeout."""
        return self._loaded.wait(timeout)

    @property
    def alive(self) -> bool:
        """Whether the thread runs and has not been given up; when not, nothing will ever be answered."""
        return self._thread.is_alive() and self.failure is None

    @property
    def silent_s(self) -> float:
        """Return for how many seconds the thread has been at the same batch; 0 while it loads or waits for work."""
        since = self._batch_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def inflight(self) -> int:
        """Return how many requests are queued or running."""
        return self._inflight

    @property
    def queued(self) -> int:
        """Return how many requests wait for their batch."""
        return len(self._queue)

    def answer(self, ask: Ask | Encode | Edit, deadline: float, *, admitted: bool = False) -> Ticket:
        """Return the finished ticket of `ask`. Raises Problem: overloaded, draining, deadline_exceeded, internal and so on.

        `admitted` is for the next part of a request whose first part was let in: it is not turned away half done.
        """
        ticket = self._admit(ask, deadline, admitted)
        with aside():
            done = ticket.done.wait(max(0.0, deadline - time.monotonic()))
        if not done:
            self._abandon(ticket)
            raise Problem("deadline_exceeded", "no answer within the deadline")
        if ticket.problem is not None:
            raise ticket.problem
        return ticket

    def stop(self, timeout: float | None = None) -> None:
        """Refuse new work, finish what is queued, end the thread."""
        self.draining = True
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def fail(self, error: BaseException) -> None:
        """Answer everybody who waits, now and from now on: the thread has ended or hangs, and a new process is needed."""
        self.failure = error
        with self._changed:
            for ticket in self._running:  # what it was at may be what did it, so no word of trying again
                self._refuse(ticket, Problem("internal", "the service failed at this request or beside it"))
            for ticket in list(self._queue):
                self._refuse(ticket, Problem("not_ready", ENDED, headers=_retry(5)))
            self._queue.clear()
            self._changed.notify_all()

    def check_ready(self) -> Serving:
        """Return what is being served. Raises Problem while loading or draining, and when the thread has ended."""
        if self.draining:
            raise Problem("draining", "this instance is shutting down; another one may answer", headers=_retry(1))
        if self.failure is not None:
            raise Problem("not_ready", ENDED, headers=_retry(5))
        if self.serving is None:
            raise Problem("not_ready", "the model is still loading", headers=_retry(1))
        return self.serving

    def overload(self, under_way: int = 0) -> Problem | None:
        """Return the refusal that a request would meet now because the queue is full; None where there is room.

        `under_way` counts requests that have a thread, or wait for one: most of them will be in the queue in a moment.
        """
        waiting = max(self._inflight, under_way - SPARE)
        if waiting < self._settings.max_inflight:
            return None
        seconds = max(1, math.ceil(waiting * self._request_s))
        return Problem("overloaded", f"{waiting} requests are already waiting", headers=_retry(seconds))

    def _admit(self, ask: Ask | Encode | Edit, deadline: float, admitted: bool) -> Ticket:
        with self._changed:
            if not admitted or self.failure is not None:
                self.check_ready()
            if not admitted and (problem := self.overload()) is not None:
                raise problem
            ticket = Ticket(ask, deadline, time.monotonic())
            self._queue.append(ticket)
            self._inflight += 1
            self._changed.notify_all()
        return ticket

    def _abandon(self, ticket: Ticket) -> None:
        """Take back a ticket nobody waits for; one that is already running finishes unread."""
        with self._changed:
            if ticket in self._queue:
                self._queue.remove(ticket)
                self._finish(ticket)

    def _finish(self, ticket: Ticket) -> None:
        """Give the ticket's place back before its owner learns of the answer, so that the owner may ask again at once."""
        with self._changed:
            if not ticket.done.is_set():
                self._inflight -= 1
                ticket.done.set()

    def _refuse(self, ticket: Ticket, problem: Problem) -> None:
        if not ticket.done.is_set():
            ticket.problem = problem
            self._finish(ticket)

    def _live(self) -> None:
        started = time.monotonic()
        try:
            self.serving = self._load()
        except BaseException as error:
            self.failure = error
            return
        finally:
            self._loaded.set()
        self._observer.loaded(time.monotonic() - started)
        try:
            while self.failure is None and (batch := self._next_batch()):
                started = time.monotonic()
                self._run(batch)
                self._crowded = len(batch) > 1
                self._request_s += 0.1 * ((time.monotonic() - started) / len(batch) - self._request_s)
        except BaseException as error:  # ending in silence would leave everybody waiting
            log.critical(ENDED, exc_info=True)
            self.fail(error)

    def _load(self) -> Serving:
        retriever = self._open()
        retriever.warm()
        labels = retriever.labels
        kinds: tuple[Normalize, ...] = ("topk", "all")
        for texts in (["warm up"], ["warm up"] * self._settings.batch_queries):  # what compiles on first use, compiles now
            for kind in kinds:
                retriever.search(texts, max(1, min(10, len(labels))), normalize=kind)
        return Serving(retriever)

    def _next_batch(self) -> list[Ticket]:
        """Return the oldest request and those that can travel with it; empty when the thread is to end."""
        settings = self._settings
        with self._changed:
            self._running, self._batch_since = [], None
            while True:
                self._drop_expired()
                if not self._queue:
                    if self._stopping:
                        return []
                    self._changed.wait()
                    continue
                if self._crowded and not self._stopping:
                    self._crowded = False
                    self._gather()
                    continue
                break
            group, size = self._queue[0].ask.group, 0
            batch: list[Ticket] = []
            for ticket in self._queue:
                fits = not batch or size + len(ticket.ask) <= settings.batch_queries
                if fits and ticket.ask.group == group:
                    batch.append(ticket)
                    size += len(ticket.ask)
            for ticket in batch:
                self._queue.remove(ticket)
            self._gathered = size
            self._running = batch
            return batch

    def _gather(self) -> None:
        """Wait for more of the oldest request's group until the batch is full, or nobody has come for a while.

        Requests that are being read are worth a longer wait: the processor is at work for them, and a batch has its own price.
        """
        start, pause = time.monotonic(), self._settings.batch_wait_ms / 1000
        while self._queue:
            group, waited = self._queue[0].ask.group, time.monotonic() - start
            ready = sum(len(t.ask) for t in self._queue if t.ask.group == group)
            if ready >= self._settings.batch_queries or (waited >= pause and ready >= self._gathered):
                return
            if waited >= (PAUSES * pause if self._turns.wanted else pause):
                return
            self._changed.wait(pause)

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for ticket in [ticket for ticket in self._queue if ticket.deadline <= now]:
            self._queue.remove(ticket)
            ticket.problem = Problem("deadline_exceeded", "the deadline passed while the request was queued")
            self._finish(ticket)

    def _run(self, batch: list[Ticket]) -> None:
        """Answer a batch; when it fails, each request again alone, so that one bad request harms no other."""
        started = self._batch_since = time.monotonic()
        assert self.serving is not None
        if isinstance(batch[0].ask, Edit):
            self._write(batch[0], batch[0].ask, self.serving)
            return
        try:
            if isinstance(batch[0].ask, Encode):
                asks = [ticket.ask for ticket in batch if isinstance(ticket.ask, Encode)]
                for ticket, embedded in zip(batch, embed_all(self.serving.retriever, asks), strict=True):
                    ticket.embedded, ticket.started = embedded, started
                    self._finish(ticket)
                return
            until = max(ticket.deadline for ticket in batch)  # who has less time waits for less, in a thread of its own
            found = _search(self.serving.retriever, [ticket.ask for ticket in batch if isinstance(ticket.ask, Ask)], until)
            found = replace(found, chances=found.probabilities())
        except Exception as error:
            if (problem := told(error)) is not None:  # what one lacks, all of the batch lack
                for ticket in batch:
                    self._refuse(ticket, problem)
                return
            if len(batch) > 1:
                for ticket in batch:
                    self._run([ticket])
                return
            batch[0].problem = _overtaken(batch[0].ask, self.serving.retriever) if isinstance(batch[0].ask, Ask) else None
            if batch[0].problem is None:
                log.exception("a search failed")
                batch[0].problem = Problem("internal", "the search failed; the request id finds it in the server's log")
            self._finish(batch[0])
            return
        self._observer.batched(batch, found, started)
        row = 0
        for ticket in batch:
            ticket.found = _rows(found, row, row + len(ticket.ask))
            ticket.started = started
            row += len(ticket.ask)
            self._finish(ticket)

    def _write(self, ticket: Ticket, edit: Edit, serving: Serving) -> None:
        """Encode what has to be, and write; compaction goes its own way when it is due."""
        try:
            ticket.written = edits.write(serving.store, edit)
        except OSError:
            log.exception("a write failed")
            ticket.problem = Problem("insufficient_storage", "the write could not be stored; nothing has changed")
        except Problem as problem:
            ticket.problem = problem
        except Exception:  # the thread goes on: one bad write must not end the service
            log.exception("a write failed")
            ticket.problem = Problem("internal", "the write failed; the request id finds it in the server's log")
        self._observer.written(edit, ticket.written, ticket.problem.code if ticket.problem else None)
        self._finish(ticket)
        self.upkeep.compact_if_due(serving.store)


def _search(retriever: Retriever, asks: list[Ask], until: float) -> Found:
    """Return the answers of several asks of one group, row after row, by `until` where shards might take longer."""
    first = asks[0]
    how: dict[str, Any] = {
        name: getattr(first, name) for name in ("candidates", "temperature", "normalize", "diversity", "why")
    }
    how["patience"] = Patience(until, first.partial)
    if first.embeddings is not None:
        rows = torch.cat([ask.embeddings for ask in asks if ask.embeddings is not None])
        return retriever.search_embeddings(rows, first.k, **how)
    return retriever.search([text for ask in asks for text in ask.texts], first.k, **how)


def _overtaken(ask: Ask, retriever: Retriever) -> Problem | None:
    """Return what a request was told too late, where another version was activated between its check and its turn."""
    if ask.embeddings is not None and ask.embeddings.shape[1] != retriever.dimension:
        return Problem(
            "dimension_mismatch", f"another version answers by now; its embeddings have {retriever.dimension} numbers"
        )
    if ask.normalize == "calibrated" and retriever.calibration is None:
        return Problem("calibration_unavailable", "another version answers by now; it has no calibration")
    if ask.why and not retriever.remembered:
        return Problem("why_unavailable", "another version answers by now; it keeps no training queries that may be shown")
    return None


def _rows(found: Found, start: int, end: int) -> Found:
    topk = found.topk
    log_z = None if topk.log_z is None else topk.log_z[start:end]
    return replace(
        found,
        topk=replace(topk, ids=topk.ids[start:end], scores=topk.scores[start:end], log_z=log_z),
        chances=None if found.chances is None else found.chances[start:end],
        tokens=found.tokens[start:end],
        truncated=found.truncated[start:end],
        known=found.known[start:end],
        rescored=found.rescored[start:end],
        ranks=None if found.ranks is None else found.ranks[start:end],
        why=found.why[start:end],
    )


def _retry(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}
