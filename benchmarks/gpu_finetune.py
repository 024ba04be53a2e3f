"""On a machine with an NVIDIA GPU: full fine-tuning of MiniLM's shape with all labels at every step; step time and memory.

usage: python3 benchmarks/gpu_finetune.py [--data DIR] [--set KEY=VALUE ...]
The weights are random, so that nothing has to be fetched. Prints a row as it comes, and writes gpu_finetune.json under
benchmarks/results, or under $OUT. With --data it then trains real MiniLM on that data set by `dexml train`
(training/configs/finetune.toml, all labels at every step, --set as there), and adds seconds and the test figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LABELS = (16_384, 131_072, 524_288)
WHOLE_GRAPH_AT = 16_384  # labels of 8 tokens whose graph fits into 80 GB
BATCH, QUERY_WORDS, LABEL_WORDS, CHUNK = 256, 60, 6, 65_536


def rows(sizes: tuple[int, ...] = LABELS[:2], device_name: str = "cuda") -> Iterator[dict[str, Any]]:
    """Yield what was measured at each number of labels; `ratio` is the whole graph's time over ours, scaled by L where only
    ours fits, and `again` the largest difference between the rows of the two passes, dropout on, which must be 0.
    """
    import torch
    from accelerate import Accelerator
    from bench_gradient_cache import random_transformer

    from dexml.encoders.transformer import TransformerEncoder

    device = torch.device(device_name)
    with tempfile.TemporaryDirectory() as folder:
        random_transformer(Path(folder), width=384, layers=6, vocabulary=30_000)
        encoder = TransformerEncoder(model=folder)
        encoder.module.to(device).train()
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16")
    whole = None
    for labels in sizes:
        step = _Step(encoder, accelerator, device, labels)
        row: dict[str, Any] = {
            "what": f"full fine-tuning, {labels} labels",
            "labels": labels,
            "chunk": CHUNK,
            **step.timed(cached=True),
        }
        row["again"] = step.again()
        if labels == WHOLE_GRAPH_AT:
            whole = step.timed(cached=False)
            row |= {"whole_ms": whole["ms"], "whole_gib": whole["gib"]}
        row["ratio"] = whole["ms"] * labels / WHOLE_GRAPH_AT / row["ms"] if whole else float("nan")
        scaled = "" if labels == WHOLE_GRAPH_AT else ", torch scaled by L"
        row["note"] = f"{row['gib']:.2f} GiB{scaled}" + (f" (torch {whole['gib']:.2f})" if whole and not scaled else "")
        yield row


class _Step:
    """One step of B = 256 queries against `labels` labels, its texts already tokens."""

    def __init__(self, encoder: Any, accelerator: Any, device: Any, labels: int) -> None:
        import numpy as np
        import torch
        from bench_gradient_cache import random_texts

        from dexml.losses.decoupled_softmax import DecoupledSoftmax
        from dexml.types import Positives
        from training.gradient_cache import Texts

        generator = np.random.default_rng(0)
        sides = random_texts(BATCH, QUERY_WORDS, generator), random_texts(labels, LABEL_WORDS, generator)
        self.encoder, self.accelerator, self.device = encoder, accelerator, device
        self.chunks = [Texts(encoder, texts, CHUNK).chunks(np.arange(len(texts))) for texts in sides]
        self.positives = Positives.from_rows(generator.integers(0, labels, (BATCH, 5)).tolist(), labels)
        self.loss = DecoupledSoftmax(temperature=0.05)
        self.optimizer = torch.optim.AdamW(encoder.module.parameters(), lr=5e-5, fused=True)

    def encode(self, chunk: Any) -> Any:
        with self.accelerator.autocast():
            return self.encoder.rows(chunk.tokens)

    def take(self, cached: bool) -> None:
        import torch

        from training.gradient_cache import cached_backward

        def head(queries: Any, labels: Any) -> Any:
            return self.loss(queries, labels, self.positives)

        self.optimizer.zero_grad(set_to_none=True)
        if cached:
            cached_backward(self.chunks, self.encode, head, self.device)
        else:
            whole = [torch.cat([self.encode(chunk.to(self.device)) for chunk in side]) for side in self.chunks]
            head(*whole).backward()
        self.optimizer.step()

    def timed(self, cached: bool, repeats: int = 3) -> dict[str, float]:
        """Return the least milliseconds of a step and its peak GiB above what was held before."""
        import torch

        on_gpu = self.device.type == "cuda"
        self.take(cached)
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if on_gpu else 0
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            self.take(cached)
            if on_gpu:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() - before if on_gpu else 0
        return {"ms": 1000 * best, "gib": peak / 2**30}

    def again(self) -> float:
        """Return the largest difference between the rows of a chunk made without and with a gradient from one random state."""
        import torch

        from training.gradient_cache import RandomState

        chunk = self.chunks[1][0].to(self.device)
        state = RandomState.now(self.device)
        with torch.no_grad():
            first = self.encode(chunk)
        state.restore(self.device)
        return float((self.encode(chunk).detach() - first).abs().max())


def train(data: Path, settings: list[str]) -> dict[str, Any]:
    """Return seconds and test figures of a real run: MiniLM, all labels at every step."""
    with tempfile.TemporaryDirectory() as out:
        dexml = [sys.executable, "-m", "dexml"]
        config = ROOT / "training" / "configs" / "finetune.toml"
        chosen = [f"data.path={data.resolve()}", f"out={out}/run", "finetune.negatives=all", *settings]
        start = time.perf_counter()
        subprocess.run([*dexml, "train", config, *(part for one in chosen for part in ("--set", one))], cwd=ROOT, check=True)
        seconds = time.perf_counter() - start
        subprocess.run([*dexml, "evaluate", f"{out}/run", "--json", f"{out}/test.json"], cwd=ROOT, check=True)
        return {"seconds": seconds, "settings": chosen[2:], "test": json.loads(Path(f"{out}/test.json").read_text())}


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data set to train real MiniLM on")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--cpu", type=int, metavar="L", help="try the script itself on a CPU with L labels; no figures")
    chosen = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    import torch
    from machine import describe, write_result

    if chosen.cpu:
        global WHOLE_GRAPH_AT
        WHOLE_GRAPH_AT = chosen.cpu
        print(list(rows((chosen.cpu,), "cpu")))
        return 0
    if not torch.cuda.is_available():
        print("torch sees no NVIDIA GPU; --cpu 64 tries the script itself")
        return 1
    result: dict[str, Any] = {"machine": describe(), "rows": []}
    for row in rows(LABELS):
        result["rows"].append(row)
        print(f"{row['what']:40} {row['ms']:9.1f} ms  {row['gib']:6.2f} GiB  {row['note']}", flush=True)
        write_result("gpu_finetune", result)
    if chosen.data:
        result["trained"] = train(chosen.data, chosen.settings)
    print(write_result("gpu_finetune", result))
    return int(any(row["again"] for row in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
