"""What an exporter is, and what it is given: the labels of a bundle as they are now, and what is known of them."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from dexml.errors import InputError

if TYPE_CHECKING:
    from dexml.types import Float32Array, Int64Array
    from index.live import Live
    from index.store import Store

LONGEST = 300  # characters of what another program says, in an error message


class Batch(NamedTuple):
    """n labels: `ids`, `texts`, and unit rows float32 (n, D)."""

    ids: list[str]
    texts: list[str]
    rows: Float32Array


@dataclass(frozen=True, eq=False)
class Source:
    """The live labels of an opened bundle, in row order, its `encoder` folder, and `about`: what JSON can say of them.

    `report` is told how many labels are done.
    """

    live: Live
    numbers: Int64Array
    encoder: Path
    about: dict[str, Any]
    report: Callable[[int], None]

    @staticmethod
    def of(store: Store, report: Callable[[int], None]) -> Source:
        """Return the labels that `store` has now: what is deleted is not among them, what was added is."""
        from dexml import __version__

        live, manifest = store.live, store.bundle.manifest
        about = {
            "model": store.bundle.name,
            "version": store.name,
            "labels": len(live.labels),
            "dimension": manifest.dimension,
            "temperature": manifest.temperature,
            "similarity": "inner product of unit rows",
            "dexml": __version__,
        }
        return Source(live, live.labels.live(), store.bundle.root / "encoder", about, report)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def dimension(self) -> int:
        """The width D of the rows."""
        return self.live.index.dimension

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield all labels, at most `size` at a time, and report those that the caller is done with."""
        labels = self.live.labels
        for start in range(0, len(self), size):
            part = self.numbers[start : start + size]
            ids, texts = ([table[row] for row in part.tolist()] for table in (labels.ids, labels.texts))
            yield Batch(ids, texts, self.live.index.snapshot(part).numpy())
            self.report(start + len(part))


class Exporter(ABC):
    """A target. Keyword-only fields are its options; `dexml export` has one of that name, with the field's description."""

    extra: ClassVar[str] = ""
    """The extra of the package dexml that installs what it needs,"""
    needs: ClassVar[tuple[str, ...]] = ()
    """which is these modules. They are imported when something is exported, not before."""

    @classmethod
    def check(cls) -> None:
        """Raise InputError when a package that it needs is missing."""
        missing = [name for name in cls.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f"{cls.extra}: {', '.join(missing)} missing; pip install 'dexml[{cls.extra}]'")

    @abstractmethod
    def export(self, source: Source) -> str:
        """Export all labels and return, in words, where they are now.

        Raises InputError when something is there already, or where writing is impossible; nothing half is left then.
        """


def one_line(error: BaseException) -> str:
    """Return what another program's exception says on one line, cut where it goes on and on."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= LONGEST else f"{said[: LONGEST - 1]}…"


def one_of(url: str | None, path: Path | None) -> None:
    """Raise InputError unless a server or a local file is named, and not both."""
    if (url is None) == (path is None):
        raise InputError("give --url of a server, or --path for a local one" + ("" if url is None else ", not both"))
    if url is not None and not url.startswith(("http://", "https://")):
        raise InputError(f"--url: an address that begins with http:// or https:// is needed, got {url!r}")
