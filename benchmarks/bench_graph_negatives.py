"""Negatives from a graph of labels beside mined ones and the batch's own: the same small fine-tune three ways.

python benchmarks/bench_graph_negatives.py DATA [--epochs 3] [--labels 400] [--seeds 0 1]
Prints P@k on test rows and the labels scored a step; writes benchmarks/results/graph_negatives.json. Minutes on one core.

The first two layers of MiniLM are trained whole under a residual tower, texts cut at 64 tokens; the graph is TOPO's of the most
frequent labels on the training rows.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, write_result
from rich.console import Console
from rich.table import Table

from data import open_format
from dexml.config import load
from dexml.encoders import minilm
from dexml.types import Positives
from index.retriever import Retriever
from training.analysis.graphml import written
from training.analysis.label_graph import Asked, chosen, find
from training.config import Config, check, settle
from training.evaluate import evaluate
from training.export import export
from training.run import Run, hold_out

CONFIG = """
name = "negatives"
out = "{folder}/run"
[data]
path = "{data}"
[encoder]
name = "transformer"
model = "{folder}/model"
max_tokens = 64
[tower]
name = "residual"
[finetune]
train = "full"
precision = "float32"
device = "cpu"
[training]
batch = 64
trackers = []
[validation]
refit = false
[index]
name = "exact"
"""


def two_layers(folder: Path) -> None:
    """Write the first two layers of MiniLM to `folder`/model."""
    from sentence_transformers import SentenceTransformer

    whole = SentenceTransformer(str(minilm.locate()), device="cpu")
    bert: Any = whole[0].model
    bert.encoder.layer = bert.encoder.layer[:2]
    bert.config.num_hidden_layers = 2
    whole.save(str(folder / "model"), create_model_card=False)


def graph_of(positives: Positives, labels: int, ids: tuple[str, ...], path: Path) -> int:
    """Write the graph of the most frequent labels; return its number of edges."""
    own = chosen(positives, labels)
    found = find(positives, own, None, Asked(), lambda *told: False)
    names = [ids[number] for number in own.tolist()]
    path.write_text(written(found.weights, names, names, found.counts.tolist(), {}), encoding="utf-8")
    return len(found.edges)


def trained(config: Path, data: Path, out: Path, settings: list[str]) -> dict[str, Any]:
    """Return the figures of a fine-tune on test rows, the labels that its steps scored, and its seconds a step."""
    read = load(Config, config, [f"out={out}", *settings])
    check(read)
    files = open_format(data)
    split, test = files.read("train"), files.read("test")
    settled, _ = settle(read, len(split))
    train, validation = hold_out(settled, split)
    run = Run(settled, files.labels(), train, validation)
    scored: list[int] = []
    seconds: list[float] = []

    def report(progress: Any) -> None:
        scored.append(progress.scores // progress.queries)
        seconds.append(progress.step_seconds)

    run.go(report)
    root, _ = export(run, split, finished=True)
    figures = evaluate(Retriever.open(root, "exact"), files.labels(), test, read.data.propensity, lambda done: None, keep=False)
    return {**figures.figures, "scored": float(np.mean(scored)), "seconds": float(np.median(seconds))}


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="dexml-negatives-") as place:
        folder = Path(place)
        two_layers(folder)
        config, graph = folder / "negatives.toml", folder / "labels.graphml"
        config.write_text(CONFIG.format(folder=folder, data=given.data.resolve()), encoding="utf-8")
        files = open_format(given.data)
        edges = graph_of(files.read("train").positives, given.labels, files.labels().ids, graph)
        for seed in given.seeds:
            for way in ("in-batch", "mined", "graph"):
                settings = [f"seed={seed}", f"training.epochs={given.epochs}", f"finetune.negatives={way}"]
                if way == "graph":
                    settings.append(f"finetune.graph={graph}")
                rows.append({"negatives": way, "seed": seed, **trained(config, given.data, folder / f"{way}{seed}", settings)})
                print(rows[-1], flush=True)
    table = Table(title=f"{given.data.name}, {given.epochs} epochs, a graph of {given.labels} labels and {edges} edges")
    for head in rows[0]:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row.values()))
    Console().print(table)
    result = {"machine": describe(), "data": given.data.name, "epochs": given.epochs, "labels": given.labels, "edges": edges}
    print(write_result("graph_negatives", {**result, "table": rows}))


if __name__ == "__main__":
    main()
