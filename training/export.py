"""A finished run becomes a bundle: all label rows, the index, and how it came to be."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from dexml.bundle import publish
from dexml.types import Split
from index import INDEXES
from training.run import Run

VERSIONED = ("dexml", "torch", "numpy", "scipy", "tokenizers", "sentence-transformers", "faiss-cpu", "faiss-gpu")


def export(run: Run, train: Split, *, finished: bool) -> Path:
    """Write OUT/bundle and return it; `train` is the whole training split, whose label counts the PSP metrics need.

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
        "examples": list(config.examples or _examples(train)),
        "data": {
            "path": str(config.data.path),
            "format": config.data.format,
            "propensity": list(config.data.propensity),
            "train_rows": len(train),
        },
        "training": {
            "finished": finished,
            "step": run.step,
            "steps": run.steps,
            "config": config.model_dump(mode="json"),
            "commit": _commit(),
            "python": platform.python_version(),
            "versions": _versions(),
        },
    }
    publish(root, run.model, run.labels, train.positives.counts(), embeddings, facts, index.save)
    return root


def _examples(train: Split, count: int = 5, longest: int = 90) -> list[str]:
    """Return a few short texts of the data set, spread over it, for a page to offer."""
    short = [text for text in train.texts if len(text) <= longest] or [text[:longest] for text in train.texts]
    return short[:: max(1, len(short) // count)][:count]


def _commit() -> str | None:
    """Return the git commit of the code, or None where it is no checkout."""
    try:
        here = Path(__file__).resolve().parent
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
