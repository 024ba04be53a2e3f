"""What changes the version that is served: compaction when it is due, and what an administrator asks for; one at a time.

It happens in a thread of its own, while the owner of the model goes on answering: numerical libraries keep a team of threads
for every thread that calls them, and request threads are many. The thread is a daemon: a version is published whole or not at
all, so that a service that ends need not wait for one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from dexml.errors import InputError, StorageError
from index.shards import ShardsMissing, TooLate
from index.store import Store
from serve.errors import Problem
from serve.observer import Observer
from serve.sharding import told
from serve.turns import aside

log = logging.getLogger("dexml.serve")


class Upkeep:
    """Publishes and takes over versions, and tells `observer` how it went."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._busy = threading.Lock()

    def compact_if_due(self, store: Store) -> None:
        """Begin a compaction where so much was added and deleted that it pays; return at once."""
        if store.due and (done := self._begin(store.compact)) is not None:
            done.add_done_callback(_log_compaction)

    def change(self, store: Store, act: Callable[[], str]) -> str:
        """Return the name of the version that `act` made current. Raises Problem: conflict, version_unusable and so on."""
        done = self._begin(act)
        if done is None:
            raise Problem("conflict", "another change of version is under way; try again when it has ended")
        try:
            with aside():
                return done.result()
        except StorageError:
            log.exception("a version could not be stored")
            raise Problem("insufficient_storage", "the version could not be stored; nothing has changed") from None
        except (ShardsMissing, TooLate) as error:
            log.error("a version was not taken over: %s", error or type(error).__name__)
            raise told(error) or error from None
        except InputError as error:
            log.error("a version was refused: %s", error)
            raise Problem("version_unusable", _without_paths(str(error), store)) from None

    def _begin(self, act: Callable[[], str]) -> Future[str] | None:
        if not self._busy.acquire(blocking=False):
            return None

        done: Future[str] = Future()

        def run() -> None:
            try:
                name = act()
            except Exception as error:
                refused = isinstance(error, InputError) and not isinstance(error, StorageError)
                self._observer.swapped("refused" if refused else "failed")
                self._busy.release()
                done.set_exception(error)
            else:
                self._observer.swapped("ok")
                self._busy.release()
                done.set_result(name)

        threading.Thread(target=run, name="dexml-upkeep", daemon=True).start()
        return done


def _log_compaction(done: Future[str]) -> None:
    try:
        log.info("compacted: %s", done.result())
    except Exception:  # what is served goes on without: the log just grows
        log.exception("compaction failed")


def _without_paths(words: str, store: Store) -> str:
    """Return an error's words without the place of the bundle on this machine, which is not a client's business."""
    return words.replace(f"{store.root}/", "").replace(str(store.root), "the bundle")


__all__ = ["Upkeep"]
