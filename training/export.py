"""A finished run becomes a bundle: all label rows, the index, and how it came to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dexml.bundle import publish
from dexml.memory import Memory
from dexml.types import LabelTable, Split
from index import INDEXES, canary
from training import provenance
from training.recall import remember, usual, weigh_run
from training.run import Run


def export(run: Run, train: Split, *, finished: bool) -> tuple[Path, str]:
    """Write OUT/bundle; return it, and in words the index, and the training queries where some are kept.

    `train` is the whole training split, whose label counts the PSP metrics need.
    A run that was interrupted is marked as such, and answers all the same. What a kept memory weighs was found by a watched
    run before, or is by this one.
    """
    config = run.config
    embeddings = run.embeddings()
    memory: Memory | None = None
    if config.memory.queries:
        memory = remember(train, run.query_rows(train.texts), config.memory, config.seed)
        run.weighed = run.weighed or weigh_run(run, embeddings) or usual(config.memory)
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
    if memory is not None and run.weighed is not None:
        facts["memory"] = run.weighed.facts(memory)

    def add(folder: Path) -> None:
        canary.write(folder, run.model, facts["examples"], run.labels.ids, embeddings)

    publish(root, run.model, run.labels, train.positives.counts(), embeddings, facts, index.save, memory, add)
    said = f"index: {', '.join(f'{key} {value}' for key, value in index.describe().items())}"
    return root, said if memory is None else f"{said}\nmemory: {len(memory):,} training queries, {run.weighed}"


def examples(labels: LabelTable, count: int = 5, longest: int = 60) -> tuple[str, ...]:
    """Return a few short label texts for a page to offer. Training texts may be private; labels are served in any case."""
    short = [text for text in labels.texts if len(text) <= longest]
    return tuple(short[:: max(1, len(short) // count)][:count])
