"""Addition modulo a prime, learned by heart or by rule: Adam and ⊥Grad under cross-entropy, Adam under StableMax.

python benchmarks/bench_grokking.py [--seeds 0 1 2] [--epochs 300] [--modulus 113]
Prints accuracy on sums never seen, and when it reached 95%; writes benchmarks/results/grokking.json. Minutes on one core.

The recipe of Prieto et al. (2025): two numbers one-hot, 40% of all pairs to train on, a full batch an epoch, two hidden layers
of 200 units without biases, Adam at 0.01. The losses are dexml's own, over a head of weights that have no fixed length.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, dataclass

import torch
from machine import describe, write_result
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dexml.losses import LOSSES
from dexml.types import Positives
from training.optimizers.orthograd import OrthoGrad
from training.stability import counted, shares

WAYS = {
    "Adam, softmax": ("adam", "softmax"),
    "⊥Grad, softmax": ("orthograd", "softmax"),
    "Adam, StableMax": ("adam", "stablemax"),
}
WIDTH, RATE, SHARE = 200, 0.01, 0.4
EVERY = 10  # epochs between measurements
ENOUGH = 0.95


@dataclass(frozen=True)
class Learned:
    """Accuracies on both sides by epoch, the first epoch of 95% on new sums, and what is collapsed in the end."""

    epochs: list[int]
    seen: list[float]
    unseen: list[float]
    generalised: int | None
    collapsed: dict[str, float] | None
    seconds: float


class Adder(nn.Module):
    """Features (N, WIDTH) of pairs, and a row of the head for each residue."""

    def __init__(self, modulus: int) -> None:
        super().__init__()
        first, second = nn.Linear(2 * modulus, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.features = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.head = nn.Linear(WIDTH, modulus, bias=False)

    def accuracy(self, pairs: Tensor, sums: Tensor) -> float:
        """Return the share of right answers."""
        with torch.no_grad():
            return float((self.head(self.features(pairs)).argmax(1) == sums).float().mean())


def sums_of(modulus: int, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return pairs one-hot (N, 2·modulus) and their sums (N), those to train on and the others."""
    left, right = (side.flatten() for side in torch.meshgrid(*2 * [torch.arange(modulus)], indexing="ij"))
    one_hot = torch.cat([torch.eye(modulus)[left], torch.eye(modulus)[right]], dim=1)
    order = torch.randperm(modulus**2, generator=torch.Generator().manual_seed(seed))
    train, rest = order[: int(SHARE * modulus**2)], order[int(SHARE * modulus**2) :]
    sums = (left + right) % modulus
    return (one_hot[train], sums[train]), (one_hot[rest], sums[rest])


def learn(way: str, modulus: int, epochs: int, seed: int, stop: bool = False) -> Learned:
    """Train one way; with `stop` no further than to 95% on new sums."""
    began = time.monotonic()
    optimizer_name, loss_name = WAYS[way]
    torch.manual_seed(seed)
    seen, unseen = sums_of(modulus, seed)
    net = Adder(modulus)
    base = torch.optim.Adam(net.parameters(), lr=RATE)
    optimizer = OrthoGrad(base) if optimizer_name == "orthograd" else base
    loss = LOSSES.build(loss_name, {"temperature": 1.0, "products": "float32"})
    positives = Positives.from_rows([[int(number)] for number in seen[1]], modulus)
    learned = Learned([], [], [], None, None, 0.0)
    generalised = None
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad()
        loss(net.features(seen[0]), net.head.weight, positives).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if epoch % EVERY == 0:
            learned.epochs.append(epoch)
            learned.seen.append(net.accuracy(*seen))
            learned.unseen.append(net.accuracy(*unseen))
            if generalised is None and learned.unseen[-1] >= ENOUGH:
                generalised = epoch
                if stop:
                    break
    assert loss.pulls is not None
    made = {"generalised": generalised, "collapsed": shares(counted(loss.pulls)), "seconds": time.monotonic() - began}
    return Learned(**{**asdict(learned), **made})


def main() -> None:
    """Train every way with every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--modulus", type=int, default=113)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"(a + b) mod {chosen.modulus}, {chosen.epochs} epochs, seeds {chosen.seeds}")
    for column in (
        "way",
        "seen %",
        "unseen %, median (worst … best)",
        "95% unseen at epoch",
        "without gradient in float32, bfloat16 %",
        "s",
    ):
        table.add_column(column)
    rows: dict[str, list[Learned]] = {}
    for way in WAYS:
        rows[way] = [learn(way, chosen.modulus, chosen.epochs, seed) for seed in chosen.seeds]
        unseen = sorted(100 * run.unseen[-1] for run in rows[way])
        lost = {
            name: statistics.median(100 * (run.collapsed or {})[name] for run in rows[way]) for name in ("float32", "bfloat16")
        }
        table.add_row(
            way,
            f"{100 * statistics.median(run.seen[-1] for run in rows[way]):.1f}",
            f"{statistics.median(unseen):.1f} ({unseen[0]:.1f} … {unseen[-1]:.1f})",
            ", ".join("never" if run.generalised is None else str(run.generalised) for run in rows[way]),
            f"{lost['float32']:.1f}, {lost['bfloat16']:.1f}",
            f"{statistics.median(run.seconds for run in rows[way]):.0f}",
        )
    Console(width=140).print(table)
    figures = {
        way: {str(seed): asdict(run) for seed, run in zip(chosen.seeds, runs, strict=True)} for way, runs in rows.items()
    }
    settings = {"modulus": chosen.modulus, "epochs": chosen.epochs}
    print(write_result("grokking", {"machine": describe(), **settings, "rows": figures}))


if __name__ == "__main__":
    main()
