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

import torch

from dexml.label_log import Change
from index.retriever import Found, Normalize, Retriever
from index.store import Store
from serve.embeddings import embed_all
from serve.errors import Fault, Problem
from serve.settings import Settings
from serve.tickets import Ask, Edit, Encode, Serving, Ticket

log = logging.getLogger("dexml.serve")

UNKNOWN = "holds no word that the model knows; give an embedding"


class Worker:
    """The thread that owns the model, and the bounded queue in front of it."""

    def __init__(self, open_retriever: Callable[[], Retriever], settings: Settings) -> None:
        self._open = open_retriever
        self._settings = settings
        self._changed = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._inflight = 0  # queued and running
        self._stopping = False
        self._crowded = False  # the last batch held several requests, so a short wait may gather several again
        self._request_s = 0.01  # running mean of seconds per request, for Retry-After
        self._loaded = threading.Event()
        self._compacting: threading.Thread | None = None
        self._thread = threading.Thread(target=self._live, name="dexml-model", daemon=True)
        self.draining = False  # a plain flag: a signal handler sets it
        self.serving: Serving | None = None
        self.failure: Exception | None = None

    def start(self) -> None:
        """Start the thread; it loads the model first."""
        self._thread.start()

    def wait_until_loaded(self, timeout: float | None = None) -> bool:
        """Wait until loading ended, well (`serving` is set) or badly (`failure` is); False on timeout."""
        return self._loaded.wait(timeout)

    @property
    def alive(self) -> bool:
        """Whether the thread runs; when it does not, nothing will ever be answered."""
        return self._thread.is_alive()

    @property
    def inflight(self) -> int:
        """Return how many requests are queued or running."""
        return self._inflight

    def answer(self, ask: Ask | Encode | Edit, deadline: float, *, admitted: bool = False) -> Ticket:
        """Return the finished ticket of `ask`. Raises Problem: overloaded, draining, deadline_exceeded, internal and so on.

        `admitted` is for the next part of a request whose first part was let in: it is not turned away half done.
        """
        ticket = self._admit(ask, deadline, admitted)
        if not ticket.done.wait(max(0.0, deadline - time.monotonic())):
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

    def check_ready(self) -> Serving:
        """Return what is being served. Raises Problem while loading or draining."""
        if self.draining:
            raise Problem("draining", "this instance is shutting down; another one may answer", headers=_retry(1))
        if self.serving is None:
            raise Problem("not_ready", "the model is still loading", headers=_retry(1))
        return self.serving

    def _admit(self, ask: Ask | Encode | Edit, deadline: float, admitted: bool) -> Ticket:
        if not admitted:
            self.check_ready()
        with self._changed:
            if self._inflight >= self._settings.max_inflight and not admitted:
                seconds = math.ceil(self._inflight * self._request_s)
                raise Problem("overloaded", f"{self._inflight} requests are already waiting", headers=_retry(max(1, seconds)))
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
            self._inflight -= 1
        ticket.done.set()

    def _live(self) -> None:
        try:
            self.serving = self._load()
        except Exception as error:
            self.failure = error
            return
        finally:
            self._loaded.set()
        while batch := self._next_batch():
            started = time.monotonic()
            self._run(batch)
            self._crowded = len(batch) > 1
            self._request_s += 0.1 * ((time.monotonic() - started) / len(batch) - self._request_s)

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
            while True:
                self._drop_expired()
                if not self._queue:
                    if self._stopping:
                        return []
                    self._changed.wait()
                    continue
                if self._crowded and not self._stopping:
                    self._crowded = False
                    self._gather(time.monotonic() + settings.batch_wait_ms / 1000)
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
            return batch

    def _gather(self, until: float) -> None:
        """Wait for more of the oldest request's group, until the batch is full or the time is up."""
        while (left := until - time.monotonic()) > 0 and self._queue:
            group = self._queue[0].ask.group
            if sum(len(t.ask) for t in self._queue if t.ask.group == group) >= self._settings.batch_queries:
                return
            self._changed.wait(left)

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for ticket in [ticket for ticket in self._queue if ticket.deadline <= now]:
            self._queue.remove(ticket)
            ticket.problem = Problem("deadline_exceeded", "the deadline passed while the request was queued")
            self._finish(ticket)

    def _run(self, batch: list[Ticket]) -> None:
        """Answer a batch; when it fails, each request again alone, so that one bad request harms no other."""
        started = time.monotonic()
        assert self.serving is not None
        if isinstance(batch[0].ask, Edit):
            self._write(batch[0], batch[0].ask, self.serving)
            return
        try:
            if isinstance(batch[0].ask, Encode):
                asks = [ticket.ask for ticket in batch if isinstance(ticket.ask, Encode)]
                for ticket, embedded in zip(batch, embed_all(self.serving.retriever, asks), strict=True):
                    ticket.embedded, ticket.serving, ticket.started = embedded, self.serving, started
                    self._finish(ticket)
                return
            found = _search(self.serving.retriever, [ticket.ask for ticket in batch if isinstance(ticket.ask, Ask)])
        except Exception:
            if len(batch) > 1:
                for ticket in batch:
                    self._run([ticket])
                return
            log.exception("a search failed")
            batch[0].problem = Problem("internal", "the search failed; the request id finds it in the server's log")
            self._finish(batch[0])
            return
        row = 0
        for ticket in batch:
            ticket.found = _rows(found, row, row + len(ticket.ask))
            ticket.serving, ticket.started = self.serving, started
            row += len(ticket.ask)
            self._finish(ticket)

    def _write(self, ticket: Ticket, edit: Edit, serving: Serving) -> None:
        """Encode what has to be, and write; compaction goes its own way when it is due."""
        store = serving.store
        try:
            if edit.check is not None:
                edit.check(store)
            texts = [text for _, text, row in edit.put if row is None and text is not None]
            rows = serving.retriever.model.embed_labels(texts).numpy() if texts else ()
            encoded = iter(rows)
            for text, made in zip(texts, rows, strict=True):
                if not made.any():
                    place = next(number for number, (_, own, row) in enumerate(edit.put) if row is None and own == text)
                    raise Problem("schema", faults=[Fault(f"/labels/{place}/text", "schema", UNKNOWN)])
            changes = [Change(name, text or name, next(encoded) if row is None else row) for name, text, row in edit.put]
            ticket.written = store.write([*changes, *(Change(name) for name in edit.deleted)])
        except OSError:
            log.exception("a write failed")
            ticket.problem = Problem("insufficient_storage", "the write could not be stored; nothing has changed")
        except Problem as problem:
            ticket.problem = problem
        except Exception:  # the thread goes on: one bad write must not end the service
            log.exception("a write failed")
            ticket.problem = Problem("internal", "the write failed; the request id finds it in the server's log")
        self._finish(ticket)
        if store.due and not (self._compacting and self._compacting.is_alive()):
            self._compacting = threading.Thread(target=_compact, args=(store,), name="dexml-compaction", daemon=True)
            self._compacting.start()


def _compact(store: Store) -> None:
    try:
        log.info("compacted: %s", store.compact())
    except Exception:  # what is served goes on without: the log just grows
        log.exception("compaction failed")


def _search(retriever: Retriever, asks: list[Ask]) -> Found:
    """Return the answers of several asks of one group, row after row."""
    first = asks[0]
    if first.embeddings is not None:
        rows = torch.cat([ask.embeddings for ask in asks if ask.embeddings is not None])
        return retriever.search_embeddings(
            rows,
            first.k,
            candidates=first.candidates,
            temperature=first.temperature,
            normalize=first.normalize,
        )
    texts = [text for ask in asks for text in ask.texts]
    return retriever.search(
        texts, first.k, candidates=first.candidates, temperature=first.temperature, normalize=first.normalize
    )


def _rows(found: Found, start: int, end: int) -> Found:
    topk = found.topk
    log_z = None if topk.log_z is None else topk.log_z[start:end]
    return replace(
        found,
        topk=replace(topk, ids=topk.ids[start:end], scores=topk.scores[start:end], log_z=log_z),
        tokens=found.tokens[start:end],
        truncated=found.truncated[start:end],
        known=found.known[start:end],
        rescored=found.rescored[start:end],
    )


def _retry(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}
