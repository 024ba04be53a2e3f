"""A finished run becomes a bundle: all label rows, the index, and how it came to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dexml.bundle import publish
from dexml.calibration import Calibration
from dexml.memory import Memory
from dexml.types import LabelTable, Split
from index import INDEXES, canary
from training import provenance
from training.calibration import Judged, judge
from training.recall import remember, usual
from training.run import Run


def export(run: Run, train: Split, *, finished: bool) -> tuple[Path, str]:
    """Write OUT/bundle; return it, and in words the index, the training queries where some are kept, and the calibration.

    `train` is the whole training split, whose label counts the PSP metrics need.
    A run that was interrupted is marked as such, and answers all the same. What a kept memory weighs, and what scores mean as
    probabilities, was found by a watched run before, or is by this one.
    """
    config = run.config
    embeddings = run.embeddings()
    judged = judge(run, embeddings) if run.calibration is None else Judged(run.weighed, run.calibration)
    memory: Memory | None = None
    if config.memory.queries:
        memory = remember(train, run.query_rows(train.texts), config.memory, config.seed)
        run.weighed = run.weighed or judged.weighed or usual(config.memory)
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
        if isinstance(judged.calibration, Calibration):
            judged.calibration.write(folder)

    publish(root, run.model, run.labels, train.positives.counts(), embeddings, facts, index.save, memory, add)
    said = f"index: {', '.join(f'{key} {value}' for key, value in index.describe().items())}"
    if memory is not None:
        said = f"{said}\nmemory: {len(memory):,} training queries, {run.weighed}"
    return root, f"{said}\n{judged}"


def examples(labels: LabelTable, count: int = 5, longest: int = 60) -> tuple[str, ...]:
    """Return a few short label texts for a page to offer. Training texts may be private; labels are served in any case."""
    short = [text for text in labels.texts if len(text) <= longest]
    return tuple(short[:: max(1, len(short) // count)][:count])
