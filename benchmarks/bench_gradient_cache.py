"""Peak memory of one fine-tuning step over all labels: gradients cached by chunk against the whole graph, L = 2k … 128k.

usage: python benchmarks/bench_gradient_cache.py [--largest L]
Every point is a process of its own that takes one step of a random four-layer BERT (width 128) with dropout on, and reads how
far its resident memory rose above what it held before (VmHWM, reset after a small first step). Writes gradient_cache.json and
docs/img/gradient_cache.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe, write_result

LABELS = tuple(2048 << step for step in range(7))  # 2k … 128k
CHUNKS = (2048, 8192, 32768)  # tokens
PLAIN_UP_TO = 32768  # labels whose whole graph fits into 16 GiB
BATCH, WIDTH, LAYERS, WORDS = 64, 128, 4, 6
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "img" / "gradient_cache.png"
# Freed blocks go back to the system at once, so that resident memory is what is held.
QUIET = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "TOKENIZERS_PARALLELISM": "false"}


def main() -> int:
    """Measure every point, write the result and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=LABELS[-1], help="the most labels (for a quick look)")
    parser.add_argument("--point", nargs=3, metavar=("FOLDER", "LABELS", "CHUNK"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.point:
        folder, labels, chunk = chosen.point
        print(json.dumps(measure(Path(folder), int(labels), int(chunk))))
        return 0
    points = []
    with tempfile.TemporaryDirectory() as folder:
        random_transformer(Path(folder), width=WIDTH, layers=LAYERS)
        for labels in (count for count in LABELS if count <= chosen.largest):
            for chunk in (*CHUNKS, 0):
                if chunk == 0 and labels > PLAIN_UP_TO:
                    continue
                points.append(_in_process(folder, labels, chunk))
                shown = points[-1]
                way = f"chunk {chunk:,}" if chunk else "whole graph"
                print(f"L {labels:7,}  {way:12}  {shown['peak_mib']:8,.0f} MiB  {shown['seconds']:6.1f} s", flush=True)
    setting = {"batch": BATCH, "width": WIDTH, "layers": LAYERS, "words": WORDS, "loss": "decoupled_softmax"}
    path = write_result("gradient_cache", {"machine": describe(), "setting": setting, "points": points})
    print(f"{path}\n{draw(points)}")
    return 0


def _in_process(folder: str, labels: int, chunk: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--point", folder, str(labels), str(chunk)]
    done = subprocess.run(command, env={**os.environ, **QUIET}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"L {labels}, chunk {chunk}: exit {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, labels: int, chunk: int) -> dict[str, Any]:
    """Return peak memory above the start and seconds of one step; `chunk` 0 keeps the whole graph."""
    import numpy as np
    import torch

    from dexml.encoders.transformer import TransformerEncoder
    from dexml.losses import LOSSES
    from dexml.types import Positives
    from training.gradient_cache import Texts, cached_backward

    encoder = TransformerEncoder(model=str(folder))
    encoder.module.train()
    loss = LOSSES.build("decoupled_softmax")
    generator = np.random.default_rng(0)

    def step(count: int) -> None:
        sides = [random_texts(number, WORDS, generator) for number in (BATCH, count)]
        chunked = [Texts(encoder, texts, chunk or 32768).chunks(np.arange(len(texts))) for texts in sides]
        positives = Positives.from_rows(generator.integers(0, count, (BATCH, 5)).tolist(), count)

        def head(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return loss(queries, rows, positives)

        if chunk:
            cached_backward(chunked, lambda part: encoder.rows(part.tokens), head, torch.device("cpu"))
        else:
            rows = [torch.cat([encoder.rows(part.tokens) for part in parts]) for parts in chunked]
            head(*rows).backward()  # type: ignore[no-untyped-call]
        encoder.module.zero_grad(set_to_none=True)

    step(256)  # compiles, and opens what stays open
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before, start = _status("VmRSS"), time.perf_counter()
    step(labels)
    seconds = time.perf_counter() - start
    peak = (_status("VmHWM") - before) / 1024
    return {"labels": labels, "chunk": chunk, "peak_mib": round(peak, 1), "seconds": round(seconds, 1)}


def _status(key: str) -> int:
    """Return a figure of this process in KiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {key}: this benchmark needs Linux")


def random_texts(count: int, words: int, generator: Any) -> list[str]:
    """Return texts of about `words` words that `random_transformer`'s tokenizer knows."""
    lengths = generator.integers(max(1, words - 2), words + 3, count)
    return [" ".join(f"w{number}" for number in generator.integers(0, 1000, length)) for length in lengths]


def random_transformer(folder: Path, *, width: int, layers: int, vocabulary: int = 1000) -> None:
    """Write a BERT of random weights as a sentence-transformers model; its words are w0, w1, and so on."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    numbers = {word: number for number, word in enumerate([*special, *(f"w{number}" for number in range(vocabulary))])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)  # type: ignore[no-untyped-call]
    fast.save_pretrained(folder / "bert")
    config = BertConfig(
        vocab_size=len(numbers),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
    )
    BertModel(config).save_pretrained(folder / "bert")
    layers_of = [Transformer(str(folder / "bert"), max_seq_length=128), Pooling(width, "mean"), Normalize()]
    SentenceTransformer(modules=layers_of, device="cpu").save(str(folder), create_model_card=False)


def draw(points: list[dict[str, Any]]) -> Path:
    """Draw peak memory over the number of labels, a line per chunk, and return the picture's path."""
    from matplotlib.figure import Figure
    from plots import COLOURS, FAINT, INK

    figure = Figure(figsize=(8.3, 4.6), dpi=160, facecolor="white", layout="constrained")
    axes = figure.add_subplot(facecolor="white")
    for number, chunk in enumerate((0, *sorted(CHUNKS, reverse=True))):
        line = [(point["labels"], point["peak_mib"]) for point in points if point["chunk"] == chunk]
        name = f"cached, chunks of {chunk:,} tokens" if chunk else "the whole graph kept"
        axes.plot(*zip(*line, strict=True), marker="o", color=COLOURS[(3, 0, 4, 1)[number]], label=name)
    labels = sorted({point["labels"] for point in points})
    both = [2 * count * WIDTH * 4 / 2**20 for count in labels]
    axes.plot(labels, both, color=COLOURS[6], linestyle=":", label="the label rows and their gradient, 2·L·D floats")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=10)
    axes.set_xticks(labels, [f"{count // 1024}k" for count in labels])
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.tick_params(labelcolor=INK, length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_title("Memory of a fine-tuning step over all labels", loc="left", fontsize=12, color=INK, pad=10)
    axes.set_xlabel(
        f"labels L (each about {WORDS + 2} tokens; {BATCH} queries; BERT of {LAYERS} layers, width {WIDTH})", color=INK
    )
    axes.set_ylabel("peak above the start, MiB", color=INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE)
    return PICTURE


if __name__ == "__main__":
    sys.exit(main())
