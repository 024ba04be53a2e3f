"""A finished run becomes a bundle: all label rows, the index, and how it came to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dexml.bundle import publish
from dexml.types import LabelTable, Split
from index import INDEXES, canary
from training import provenance
from training.run import Run


def export(run: Run, train: Split, *, finished: bool) -> tuple[Path, dict[str, object]]:
    """Write OUT/bundle; return it and what its index says of itself.

    `train` is the whole training split, whose label counts the PSP metrics need.
    A run that was interrupted is marked as such, and answers all the same.
    """
    config = run.config
    embeddings = run.embeddings()
    index = INDEXES.build(config.index.name, config.index.options)
    index.build(embeddings)
    root = config.out / "bundle"
    facts: dict[str, Any] = {
        "name": config.name,
        "temperature": config.loss.options["temperature"],
        "index": {"name": config.index.name, **config.index.options},
        "rerank": {"name": config.rerank.name, **config.rerank.options},
        "examples": config.examples or examples(run.labels),
        "data": {
            "path": str(config.data.path.resolve()),
            "format": config.data.format,
            "propensity": config.data.propensity,
            "train_rows": len(train),
        },
        "training": {
            "finished": finished,
            "step": run.step,
            "steps": run.steps,
            "fingerprint": run.fingerprint,
            "config": config.model_dump(mode="json"),
            **provenance.facts(),
        },
    }

    def add(folder: Path) -> None:
        canary.write(folder, run.model, facts["examples"], run.labels.ids, embeddings)

    publish(root, run.model, run.labels, train.positives.counts(), embeddings, facts, index.save, add)
    return root, index.describe()


def examples(labels: LabelTable, count: int = 5, longest: int = 60) -> tuple[str, ...]:
    """Return a few short label texts for a page to offer. Training texts may be private; labels are served in any case."""
    short = [text for text in labels.texts if len(text) <= longest]
    return tuple(short[:: max(1, len(short) // count)][:count])
