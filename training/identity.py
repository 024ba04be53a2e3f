"""What decides what a run learns: its digest, and in words, so that a checkpoint of another run is refused by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from dexml.types import LabelTable, Split
from training.config import Config

# Where a run is written, how often it is saved, who watches it and what its answers go through afterwards teach it nothing.
UNTAUGHT: Mapping[str, Any] = {
    **dict.fromkeys(("name", "out", "examples", "index", "rerank", "memory", "data"), True),
    "distill": {"teacher"},  # where it lies; which it is, its version says
    "training": {"checkpoint_seconds", "trackers", "memory_gib", "timeout_seconds"},
}


def fingerprint(config: Config, labels: LabelTable, train: Split, validation: Split | None) -> str:
    """Return a digest of everything that decides what a run learns: settings, texts, labels and versions."""
    digest = hashlib.sha256()
    digest.update(config.model_dump_json(exclude=dict(UNTAUGHT)).encode())
    digest.update(torch.__version__.encode())
    for split in [train, *([] if validation is None else [validation])]:
        for text in split.texts:
            digest.update(text.encode() + b"\0")
        digest.update(split.positives.indptr.tobytes() + split.positives.indices.tobytes())
        if split.positives.weights is not None:
            digest.update(split.positives.weights.tobytes())
    for label, text in zip(labels.ids, labels.texts, strict=True):
        digest.update(f"{label}\0{text}\0".encode())
    return digest.hexdigest()


def describe(config: Config, labels: LabelTable, train: Split, validation: Split | None) -> dict[str, Any]:
    """Return the same in words and numbers, as JSON can hold it: "setting" -> value, sizes of the data, versions."""
    return {
        "labels": len(labels),
        "training rows": len(train),
        "validation rows": 0 if validation is None else len(validation),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **flat(config.model_dump(mode="json", exclude=dict(UNTAUGHT))),
    }


def difference(made: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words how two runs, as `describe` has them, differ; the data set's sizes come first."""
    keys = [*now, *(key for key in made if key not in now)]
    said = [f"{key} {_shown(made, key)}, now {_shown(now, key)}" for key in keys if made.get(key) != now.get(key)]
    return "; ".join(said) or "the same settings and sizes, but other texts or labels"


def _shown(facts: Mapping[str, Any], key: str) -> str:
    value = facts.get(key, "unset")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested sections as "section.key" -> value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{above}{key}."))
        else:
            found[f"{above}{key}"] = value
    return found
