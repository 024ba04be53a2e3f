"""Finds the owner of the model dead or stuck, so that whoever supervises the service starts it anew."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from serve.worker import ENDED, Worker

log = logging.getLogger("dexml.serve")

LOOK_S = 1.0  # between two looks, at most


class Watchdog(threading.Thread):
    """Gives the worker up when it ends, or has been at one batch for more than `patience_s`; then calls `on_fault`.

    From then on `/livez` says 503, and so does every request. Loading may take its time; so may what other threads do, such as
    a compaction. A stuck worker is given up at the second look in a row that finds it so: the first may come just after this
    process was itself stopped.
    """

    def __init__(self, worker: Worker, patience_s: float, on_fault: Callable[[], None] | None = None) -> None:
        super().__init__(name="dexml-watchdog", daemon=True)
        self._worker = worker
        self._patience_s = patience_s
        self._on_fault = on_fault

    def run(self) -> None:
        """Look until the service ends or has to."""
        worker = self._worker
        worker.wait_until_loaded()
        late = 0
        while worker.serving is not None and not worker.draining:
            late = late + 1 if worker.silent_s > self._patience_s else 0
            if late > 1:
                log.critical("the thread that owns the model has been at one batch for %.1f s", worker.silent_s)
                worker.fail(TimeoutError(ENDED))
            if not worker.alive:
                if self._on_fault is not None:
                    self._on_fault()
                return
            time.sleep(min(LOOK_S, self._patience_s / 4))
