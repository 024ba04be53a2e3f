"""QuadAttacK against an index and a tower: exact lists, certificates against a linear programme, and attacks beside CW^K.

python benchmarks/bench_audit.py RUN DATA [--tower FOLDER] [--attacked 32] [--only lists|attacks] [--choose]

RUN is a bundle of the data set DATA. Lists are random, of K labels; rows of fewer dimensions than the bundle's are its rows'
first principal components, unit again. The attacks are on two layers of MiniLM under a residual tower trained on DATA,
kept in FOLDER (made there in two minutes where it is missing). --choose shows what learning rate, λ and margin each attack does
best with on training rows; the figures are those of test rows.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_result
from scipy.optimize import linprog
from torch import Tensor

from data import open_format
from dexml.types import Split
from index.audit import MARGIN, Push, pushes
from index.base import ChangingIndex
from index.exact import ExactIndex
from index.live import LiveIndex
from index.retriever import Retriever
from training.audit.attack import WAYS, Attacked, Way, attack
from training.audit.inputs import Inputs

LISTS, QUERIES = (1, 5, 10, 20, 50), 100
DIMENSIONS = {16: 5, 32: 5, 64: 1, 128: 1}  # and how many lists of each verdict are put to the linear programme
ATTACKED = (1, 5, 10)
GRID = {"rate": (2.2e-3, 5e-3, 1e-2), "weight": (300.0, 1000.0), "margin": (2e-3, 1e-2)}
CHOSEN_ON = 12  # training rows
TOWER = """
name = "two-layers"
out = "{folder}/run"
[data]
path = "{data}"
[encoder]
name = "transformer"
model = "{folder}/model"
[tower]
name = "residual"
[loss]
name = "decoupled_softmax"
temperature = 0.06
[training]
epochs = 12
batch = 256
[index]
name = "exact"
"""


def index_of(rows: Tensor) -> LiveIndex:
    """Return an exact index over unit rows (L, D)."""
    exact = ExactIndex(scan_copy="none")
    exact.build(rows)
    return LiveIndex(exact, rows, exact.kernels)


def fewer(rows: Tensor, dimension: int) -> Tensor:
    """Return the rows' first principal components, unit again."""
    return torch.nn.functional.normalize(rows @ torch.linalg.svd(rows, full_matrices=False)[2][:dimension].T, dim=1)


def drawn(labels: int, k: int, count: int = QUERIES) -> Any:
    """Return random lists int64 (count, K)."""
    random = np.random.default_rng(k)
    return np.stack([random.choice(labels, k, replace=False) for _ in range(count)]).astype(np.int64)


def programme(rows: Any, target: Any) -> bool:
    """Return whether some z keeps a margin in all L − 1 inequalities: max t, G z ≥ t, |z_i| ≤ 1, by its dual."""
    rest = np.setdiff1d(np.arange(len(rows)), target)
    matrix = np.vstack([rows[target[:-1]] - rows[target[1:]], rows[target[-1]] - rows[rest]])
    (n, d), one = matrix.shape, np.ones((1, 1))
    equal = np.block([[matrix.T, -np.eye(d), np.eye(d), np.zeros((d, 1))], [np.ones((1, n)), np.zeros((1, 2 * d)), one]])
    cost = np.concatenate([np.zeros(n), np.ones(2 * d + 1)])
    found = linprog(cost, A_eq=equal, b_eq=np.append(np.zeros(d), 1.0))
    if found.status != 0 or found.fun is None:
        raise RuntimeError(found.message)
    return bool(found.fun > MARGIN / 2)


def lists(name: str, rows: Tensor, queries: Tensor, ks: tuple[int, ...], checked: int) -> list[dict[str, Any]]:
    """Print and return what became of random lists, `checked` of each verdict compared with a linear programme."""
    index, wide, found = index_of(rows), rows.double().numpy(), []
    index.search(queries, 1, 1.0)
    for k in ks:
        targets = drawn(len(rows), k)
        start = time.perf_counter()
        made = pushes(index, queries, targets)
        spent = time.perf_counter() - start
        reached = [push for push in made if push.row is not None]
        refuted = [push for push in made if push.certificate is not None]
        agree, asked, lp = 0, 0, 0.0
        for push in reached[:checked] + refuted[:checked]:
            start = time.perf_counter()
            agree += programme(wide, push.target) is push.reachable
            lp, asked = lp + time.perf_counter() - start, asked + 1
        row = {
            "rows": name,
            "labels": len(rows),
            "dimension": rows.shape[1],
            "k": k,
            "lists": len(made),
            "reachable": len(reached),
            "returned_exactly": _exact(index, reached, k),
            "refuted": len(refuted),
            "certificates_hold": sum(push.certificate.holds(wide, MARGIN) for push in refuted if push.certificate is not None),
            "undecided": sum(push.reachable is None for push in made),
            "median_degrees": float(np.median([push.angle for push in reached])) if reached else None,
            "ms_a_query": 1000 * spent / len(made),
            "lp_agrees": agree,
            "lp_asked": asked,
            "lp_slower": None if asked == 0 else lp / asked / (spent / len(made)),
        }
        print(
            "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()),
            flush=True,
        )
        found.append(row)
    return found


def _exact(index: ChangingIndex, reached: list[Push], k: int) -> int:
    """Return for how many pushed rows the index returns exactly the list."""
    if not reached:
        return 0
    ids = index.search(torch.stack([push.row for push in reached if push.row is not None]), k, 1.0).ids.numpy()
    return int(sum(np.array_equal(one, push.target) for one, push in zip(ids, reached, strict=True)))


def tower(folder: Path, data: Path) -> Path:
    """Return the run of the two-layer tower in `folder`, trained there where it is missing."""
    from sentence_transformers import SentenceTransformer

    from dexml.encoders import minilm
    from training.cli import train

    if not (folder / "run" / "bundle" / "CURRENT").exists():
        whole = SentenceTransformer(str(minilm.locate()), device="cpu")
        bert: Any = whole[0].model
        bert.encoder.layer = bert.encoder.layer[:2]
        bert.config.num_hidden_layers = 2
        whole.save(str(folder / "model"), create_model_card=False)
        (folder / "two.toml").write_text(TOWER.format(folder=folder, data=data.resolve()), encoding="utf-8")
        train.main([str(folder / "two.toml")], standalone_mode=False)
    return folder / "run"


def struck(retriever: Retriever, split: Split, rows: Any, k: int, ways: dict[str, Way]) -> dict[str, Attacked]:
    """Return what each way achieves against the same lists of random labels, none of them the query's own."""
    random = np.random.default_rng(k)
    labels = np.arange(len(retriever.labels))
    own = split.positives
    targets = np.stack([random.choice(np.setdiff1d(labels, own.row(row)), k, replace=False) for row in rows.tolist()])
    found: dict[str, Attacked] = {}
    for name, way in ways.items():
        parts = []
        for start in range(0, len(rows), 16):
            inputs = Inputs(retriever.model, [split.texts[row] for row in rows[start : start + 16].tolist()])
            made = attack(inputs, retriever.index, targets[start : start + 16], way, seed=start)
            assert made is not None
            parts.append(made)
        found[name] = Attacked.joined(parts)
    return found


def choose(retriever: Retriever, split: Split) -> None:
    """Print the success and ‖δ‖ of each setting on training rows, K = 5, those first that succeed most, with the least ‖δ‖."""
    rows = np.random.default_rng(0).permutation(len(split))[:CHOSEN_ON]
    for name, way in WAYS.items():
        tried: list[tuple[float, float, dict[str, float]]] = []
        for values in itertools.product(*GRID.values()):
            rate, weight, margin = values
            setting = dict(zip(GRID, values, strict=True))
            tuned = replace(way, rate=rate, weight=weight, margin=margin)
            made = struck(retriever, split, rows, 5, {name: tuned})[name]
            norm = float(np.nanmean(made.norms)) if made.rate else np.inf
            tried.append((-made.rate, norm, setting))
            print(f"{name}  {setting}  succeeded {made.rate:.2f}  mean ‖δ‖ {norm:.3f}", flush=True)
        print(f"{name}: best {min(tried, key=lambda one: one[:2])[2]}")


def attacks(retriever: Retriever, split: Split, count: int) -> list[dict[str, Any]]:
    """Print and return both attacks on test rows: success, ‖δ‖ of all that succeed and of those where both do."""
    rows, found = np.random.default_rng(0).permutation(len(split))[:count], []
    for k in ATTACKED:
        made = struck(retriever, split, rows, k, dict(WAYS))
        both = np.all([of.reached > 0 for of in made.values()], axis=0)
        for name, of in made.items():
            won = of.reached[of.reached > 0]
            row = {
                "k": k,
                "attack": name,
                "queries": len(rows),
                "succeeded": of.rate,
                "after_30": of.curve()[29],
                "median_iteration": float(np.median(won)) if len(won) else None,
                "mean_norm": float(np.nanmean(of.norms)) if len(won) else None,
                "relative": float(np.nanmean(of.relative)) if len(won) else None,
                "both": int(both.sum()),
                "mean_norm_where_both": float(of.norms[both].mean()) if both.any() else None,
            }
            print(
                "  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
            )
            found.append(row)
    return found


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tower", type=Path, help="of the two-layer model; default: a temporary folder")
    parser.add_argument("--attacked", type=int, default=32)
    parser.add_argument("--only", choices=("lists", "attacks"))
    parser.add_argument("--choose", action="store_true")
    given = parser.parse_args()
    files = open_format(given.data)
    result: dict[str, Any] = {"machine": describe()}
    if given.only != "attacks" and not given.choose:
        random = torch.Generator().manual_seed(0)
        unit = [torch.nn.functional.normalize(torch.randn(size, 128, generator=random), dim=1) for size in (1000, QUERIES)]
        result["lists"] = lists("random", unit[0], unit[1], (1, 5, 10), 5)
        retriever = Retriever.open(given.run, "exact")
        rows = retriever.bundle.embeddings
        queries = retriever.model.embed_queries(files.read("test").texts[:QUERIES])[0]
        for dimension, checked in DIMENSIONS.items():
            both = fewer(torch.cat([rows, queries]), dimension)
            result["lists"] += lists("principal", both[: len(rows)], both[len(rows) :], LISTS[:4], checked)
        result["lists"] += lists("bundle", rows, queries, LISTS, 1)
    if given.only != "lists" or given.choose:
        with tempfile.TemporaryDirectory(prefix="dexml-audit-") as place:
            folder = given.tower or Path(place)
            folder.mkdir(parents=True, exist_ok=True)
            retriever = Retriever.open(tower(folder, given.data), "exact")
            retriever.warm()
            if given.choose:
                choose(retriever, files.read("train"))
                return
            result["attacks"] = attacks(retriever, files.read("test"), given.attacked)
    print(write_result("audit" if given.only is None else f"audit_{given.only}", result))


if __name__ == "__main__":
    main()
