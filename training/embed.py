"""Texts of any number embedded into numbered parts, by any engine; what is finished is not done again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from dexml import manifest
from dexml.bundle import Bundle
from dexml.errors import InputError
from dexml.model import DualEncoder
from training import parts
from training.engines import Engine

PART_ROWS = 4096  # texts of a part: seconds of work, megabytes of rows

Side = Literal["query", "label"]


@dataclass(frozen=True)
class Block:
    """The texts of part `number`."""

    number: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Embedder:
    """What a worker of any engine does with a block: embed it and write the part.

    Rows of the side "label" are without free vectors, as those of a label that is added later.
    """

    model: DualEncoder
    side: Side
    out: Path

    def __call__(self, block: Block) -> tuple[int, parts.Part]:
        """Return the block's number and what its part says."""
        rows = self.model.embed_queries(block.texts)[0] if self.side == "query" else self.model.embed_labels(block.texts)
        return block.number, parts.write(self.out, block.number, rows.numpy())

    @staticmethod
    def open(root: Path, sha256: str, side: Side, out: Path) -> Embedder:
        """Return one over the version in the folder `root`. Raises InputError where this node sees another one there."""
        if manifest.read(root).sha256 != sha256:
            raise InputError(f"bundle: {root} is another version on this node; it must be one folder, shared by all nodes")
        return Embedder(DualEncoder.load(root / "encoder"), side, out)


@dataclass(frozen=True)
class Embedding:
    """A job over `bundle` and the texts' file; `go` does what is left of it."""

    bundle: Bundle
    out: Path
    job: parts.Job

    @staticmethod
    def of(bundle: Bundle, texts: Path, out: Path, side: Side, part_rows: int = PART_ROWS) -> Embedding:
        """Return the job of these texts, begun or to go on in `out`. Raises InputError where another job is there."""
        try:
            sha256 = manifest.sha256(texts)
        except OSError as error:
            raise InputError(f"{texts}: cannot be read ({error.strerror or error})") from None
        job = parts.Job(
            model=bundle.name,
            encoder=bundle.encoder,
            side=side,
            dimension=bundle.manifest.dimension,
            part_rows=part_rows,
            input=texts.name,
            sha256=sha256,
        )
        parts.begin(out, job)
        return Embedding(bundle, out.absolute(), job)

    def go(self, engine: Engine, texts: Iterator[str], report: Callable[[int, bool], bool]) -> parts.Done | None:
        """Make the parts that are missing. `report` gets the texts of each part, and whether it was there; the work ends where
        it returns False, and then None is returned.

        `texts` yields those of the file.
        """
        count, going = 0, True

        def missing() -> Iterator[Block]:
            nonlocal count, going
            while going and (block := tuple(islice(texts, self.job.part_rows))):
                count += 1
                if parts.finished(self.out, count - 1) is None:
                    yield Block(count - 1, block)
                else:
                    going = report(len(block), True)

        make = partial(Embedder.open, self.bundle.root.absolute(), self.bundle.manifest.sha256, self.job.side, self.out)
        for _, part in engine.run(make, missing()):
            going = report(part.rows, False) and going
        return parts.finish(self.out, count) if going else None
