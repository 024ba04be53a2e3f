"""A bundle whose labels live: added, replaced and deleted while it is searched, durable before the caller is told.

A version and its log make the labels as they are now (`dexml.versions`, `dexml.label_log`); compaction publishes them as the
next version, while searches and writes go on. One process at a time may write; any number may read what was there when they
opened.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dexml import __version__, versions
from dexml import bundle as bundle_of
from dexml import manifest as manifest_of
from dexml.bundle import Bundle
from dexml.errors import InputError
from dexml.kernels import Kernels, choose
from dexml.label_log import Change, LabelLog
from dexml.manifest import Manifest, Parent, Row
from dexml.memory import POSITIVES
from dexml.text import id_fault, text_fault
from dexml.types import Float32Array
from index import INDEXES, canary, default_index
from index.base import ChangingIndex, LabelIndex
from index.live import Changed, Live, LiveIndex, LiveLabels
from index.version import Version

Spread = Callable[[Bundle, Row, Kernels], ChangingIndex]  # a version's rows behind an index of that kind, wherever they are

MOST = 1000  # changes that one record may hold
LARGEST_STRAY = 10_000  # rows added and gone from which compaction is due,
STRAY_SHARE = 0.1  # or this share of all rows, if that is more


@dataclass(frozen=True)
class Written:
    """An acknowledged write: its number in the version's log, what it did, and the version and number of labels after it."""

    sequence: int
    changed: Changed
    version: str
    labels: int


class Moved(Exception):
    """Another model answers than the one that made the rows of a write."""


class Store:
    """An opened bundle: its current version `bundle`, and the labels as they are now, `live`.

    `live` is replaced whole by a compaction: take it once for what belongs together.
    """

    def __init__(
        self, root: Path, live: Live, records: LabelLog, index: str | None, held: ExitStack, spread: Spread | None = None
    ) -> None:
        self.root = root
        self._spread = spread
        self.live = live
        self._log = records
        self._index = index
        self._held = held
        self._writing = threading.Lock()  # one write at a time
        self._compacting = threading.Lock()
        self._warm = False
        self._later: list[list[Change]] | None = None  # writes since a compaction that runs took its rows

    @staticmethod
    def open(
        path: Path,
        *,
        writable: bool = False,
        index: str | None = None,
        kernels: Kernels | None = None,
        spread: Spread | None = None,
    ) -> Store:
        """Open the bundle at `path`, or in `path`/bundle, every checksum verified; `index` names another index than its own.

        `spread` puts the rows of this version, and of those to come, behind an index elsewhere than in this process.
        Raises InputError that names the file and what is wrong with it, and when `writable` and another process writes.
        """
        root = versions.root_of(path)
        with ExitStack() as held:
            if writable:
                held.enter_context(versions.locked(root))
            try:
                bundle = Bundle.open(root)
                manifest = bundle.manifest
                records = LabelLog(versions.log_of(bundle.root), manifest.dimension, manifest.sha256, writable=writable)
            except InputError as error:
                ways = " or --activate VERSION" if len(versions.names(root)) > 1 else ""
                raise InputError(f"{error} (dexml index {root} --recover{ways} may help)") from None
            held.callback(records.close)
            live = _live(bundle, index, kernels or choose(), spread=spread)
            live.change([change for record in records.records for change in record.changes], len(records.records))
            records.records.clear()
            return Store(root, live, records, index, held.pop_all(), spread)

    @property
    def bundle(self) -> Bundle:
        """The current version."""
        return self.version.bundle

    @property
    def version(self) -> Version:
        """The current version with its model."""
        return version_of(self.live)

    def close(self) -> None:
        """Let go of the log and the lock, once a compaction that runs has ended."""
        with self._compacting, self._writing:
            self._held.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def warm(self) -> None:
        """Load the model, bring the index to full speed (`LabelIndex.warm`), and do so for all versions to come."""
        self._warm = True
        canary.check(self.live)
        self.live.warm()

    @property
    def sequence(self) -> int:
        """How many writes the current version's log holds."""
        return self._log.acknowledged

    @property
    def log_bytes(self) -> int:
        """How long the current version's log is."""
        return self._log.bytes

    @property
    def name(self) -> str:
        """The version, and its writes: v000002+17."""
        return self.live.name

    def write(self, changes: Sequence[Change], made_by: Version | None = None) -> Written:
        """Make at most 1000 changes, all or none; they are on disk, and visible to the next search, when this returns.

        `made_by` is the version whose model made rows of them: raises Moved when another model answers by now. Raises
        InputError for a change that is no label, OSError when the disk is full. Nothing has changed in either case.
        """
        if not 0 < len(changes) <= MOST:
            raise InputError(f"labels: between 1 and {MOST} changes at once are allowed, got {len(changes)}")
        with self._writing:
            if made_by is not None and made_by.bundle.encoder != self.bundle.encoder:
                raise Moved
            checked = [_checked(change, self.bundle.manifest.dimension) for change in changes]
            sequence = self._log.append(checked)
            if self._later is not None:
                self._later.append(checked)
            changed = self.live.change(checked, sequence)
            return Written(sequence, changed, self.name, len(self.live.labels))

    @property
    def writable(self) -> bool:
        """Whether this process is the one that may write."""
        return self._log.writable

    @property
    def due(self) -> bool:
        """Whether so many rows were added, or are gone, that compaction pays."""
        return self.live.index.stray >= max(LARGEST_STRAY, STRAY_SHARE * len(self.live.labels))

    def compact(self, index: Row | None = None) -> str:
        """Publish the labels as they are now as the next version, behind another `index` where one is given; return its name.

        Searches and writes go on meanwhile: writes that come in between stand in the new version's log. Raises InputError when
        the index cannot be built of these labels, or the disk is full; everything is as before then.
        """
        with self._compacting:
            with self._writing:
                old, live, sequence = self.bundle, self.live, self.sequence
                fill = _compacted(old, live, sequence, index)
                self._later = []
            try:
                return self._go_on_from(fill, catch_up=True)
            finally:
                self._later = None

    def activate(self, name: str) -> str:
        """Publish a kept version as it was published, without the writes that came later, as the newest; return its name.

        Where this store is only read, and `name` is what CURRENT names by now, that version is taken over as it stands, and the
        writes of its log. Searches go on meanwhile. Raises InputError where the version is damaged, does not answer as it did
        when it was published (`index.canary`), or another process is writing; everything is as before then.
        """
        with self._compacting:
            if self.writable:
                return self._go_on_from(_again(self.root, name), catch_up=False)
            if not versions.names_current(self.root, name):
                activate(self.root, name)
            return self._take_over()

    def _take_over(self) -> str:
        """Go on from what CURRENT names, as a reader."""
        bundle = Bundle.open(self.root)
        live = self._prepared(bundle)
        records = LabelLog(versions.log_of(bundle.root), bundle.manifest.dimension, bundle.manifest.sha256)
        live.change([change for record in records.records for change in record.changes], len(records.records))
        records.records.clear()
        self._held.callback(records.close)
        self.live, self._log = live, records
        return bundle.root.name

    def _prepared(self, bundle: Bundle) -> Live:
        """Return a version's labels as they were published, checked, at the speed of those that it follows."""
        live = _live(bundle, self._index, self.live.index.kernels, self.version, self._spread)
        if self._warm:
            canary.check(live)
            live.warm()
        return live

    def _go_on_from(self, fill: Callable[[Path], Manifest], *, catch_up: bool) -> str:
        """Publish a version and take it over; with `catch_up`, so do the writes that came in since `_later` was begun."""
        taken: tuple[Live, LabelLog] | None = None
        with ExitStack() as writers:

            def ready(folder: Path, manifest: Manifest) -> None:
                nonlocal taken
                bundle = Bundle.read(folder, manifest)
                live = self._prepared(bundle)
                writers.enter_context(self._writing)  # from here to the switch no write gets in
                records = LabelLog(versions.log_of(folder), manifest.dimension, manifest.sha256, writable=True)
                taken = live, records
                for changes in (self._later or ()) if catch_up else ():
                    live.change(changes, records.append(changes))

            try:
                with bundle_of.told(self.root):
                    versions.publish(self.root, fill, ready)
            finally:
                # Whatever happened: what CURRENT names is what writes must go to.
                if taken is not None and versions.names_current(self.root, version_of(taken[0]).name):
                    self._log.close()
                    self.live, self._log = taken
                    self._held.callback(self._log.close)
                elif taken is not None:
                    taken[1].close()
        return self.bundle.root.name


def published_with(root: Path, folder: Path, manifest: Manifest, changes: Sequence[Change], index: Row) -> str:
    """Publish the version in `folder` with `changes` made, behind `index`; return the new name. The caller holds the lock."""
    bundle = Bundle.read(folder, manifest)
    live = _live(bundle, "exact", choose())
    live.change(changes)
    fill = _compacted(bundle, live, 0, index)
    with bundle_of.told(root):
        return versions.publish(root, lambda place: fill(place).model_copy(update={"parent": None})).name


def activate(path: Path, name: str) -> str:
    """Publish a kept version of the bundle at `path` anew, as `Store.activate` does, even where the current one is damaged."""
    root = versions.root_of(path)
    with bundle_of.told(root), versions.locked(root):
        return versions.publish(root, _again(root, name)).name


def _again(root: Path, name: str) -> Callable[[Path], Manifest]:
    """Return what fills a folder with the files of a version that is kept, all of them verified."""
    if name not in versions.names(root):
        raise InputError(f"bundle: {root} has no version {name!r}; it has {', '.join(versions.names(root))}")
    manifest = manifest_of.read(root / name)
    manifest_of.verify(root / name, manifest)

    def fill(folder: Path) -> Manifest:
        bundle_of.copy(root / name, folder)
        return manifest.model_copy(update={"parent": None})

    return fill


def _compacted(old: Bundle, live: Live, sequence: int, other: Row | None) -> Callable[[Path], Manifest]:
    """Return what fills a folder with the labels as they are at this call, and with everything else of the version `old`.

    They stand behind the index `other`, or that of `old`. No write may come in during the call; later ones do no harm.
    """
    row = other or old.manifest.index
    rows = live.labels.live()
    ids, texts = ([table[number] for number in rows] for table in (live.labels.ids, live.labels.texts))
    counts = live.labels.train_counts(rows)

    def fill(folder: Path) -> Manifest:
        embeddings = live.index.snapshot(rows)
        leave = ("index", bundle_of.LABELS, bundle_of.EMBEDDINGS, POSITIVES, canary.FILE)
        bundle_of.copy(old.root, folder, leave=leave)
        bundle_of.write_labels(folder, ids, texts, counts, embeddings)
        if old.memory is not None:
            old.memory.renumbered(rows).write_positives(folder)
        (folder / "index").mkdir()
        if len(embeddings):
            index = INDEXES.build(row.name, row.options)
            index.build(embeddings)
            index.save(folder / "index")
        canary.renew(old.root, folder, ids, embeddings)
        facts = {"dexml": __version__, "created": bundle_of.now(), "labels": len(ids)}
        return old.manifest.model_copy(
            update={**facts, "index": row, "parent": Parent(version=old.root.name, records=sequence)}
        )

    return fill


def version_of(live: Live) -> Version:
    """Return the version of labels that belong to a bundle, as all of a store do."""
    assert live.version is not None, "labels of no bundle"
    return live.version


def _live(
    bundle: Bundle, index: str | None, kernels: Kernels, before: Version | None = None, spread: Spread | None = None
) -> Live:
    """Return the labels of a version behind its index, or behind the one named."""
    kept = bundle.manifest.index
    row = kept if index in (None, kept.name) else Row(name=index)
    if row.name == "auto":
        row = Row(name=default_index())
    labels = LiveLabels(bundle.labels, bundle.train_counts)
    if spread is not None:
        return Live(labels, spread(bundle, row, kernels), Version(bundle, kernels, before))
    chosen: LabelIndex | None = None
    if len(bundle.labels):
        chosen = INDEXES.build(row.name, row.options)
        chosen.load(bundle.index_folder, bundle.embeddings)
    return Live(labels, LiveIndex(chosen, bundle.embeddings, kernels), Version(bundle, kernels, before))


def _checked(change: Change, dimension: int) -> Change:
    """Return a change as it is stored: a label's row a unit row, as the towers make them. Raises InputError."""
    if fault := id_fault(change.id):
        raise InputError(f"labels: an id {fault.words}")
    if change.row is None:
        return Change(change.id)
    if fault := text_fault(change.text):
        raise InputError(f"labels: the text of {change.id!r} {fault.words}")
    return Change(change.id, change.text, unit_row(change.row, dimension, f"labels: the embedding of {change.id!r}"))


def unit_row(row: Float32Array | Sequence[float], dimension: int, what: str) -> Float32Array:
    """Return numbers as a float32 unit row (D). Raises InputError that begins with `what`."""
    numbers = np.asarray(row, dtype=np.float64)
    if numbers.shape != (dimension,):
        raise InputError(f"{what} must have {dimension} numbers, got {numbers.size if numbers.ndim == 1 else numbers.shape}")
    largest = np.abs(numbers).max(initial=0.0)
    if not math.isfinite(largest):
        raise InputError(f"{what} holds a number that is not finite")
    if largest == 0:
        raise InputError(f"{what} is all zeros")
    numbers = numbers / largest  # squares of 1e200 would overflow
    length = float(np.linalg.norm(numbers))
    unit: Float32Array = (numbers / length).astype(np.float32)
    return unit
