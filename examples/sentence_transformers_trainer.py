"""Fine-tune any sentence-transformers model with its own trainer and our loss: all positives of a query, no false negatives.

usage: python examples/sentence_transformers_trainer.py DATA OUT [--model FOLDER] [--steps N] [--negatives N|all]
DATA is a data set in any format that dexml reads (`dexml data pydocs DATA` makes one); needs `pip install 'dexml[trainer]'`.
Prints P@1, P@5 and R@100 on the split test, by exact search, before and after.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from data import open_format
from dexml.encoders.minilm import locate
from dexml.kernels import choose
from dexml.metrics import precision_at, recall_at
from dexml.sentence_losses import DecoupledSoftmaxLoss, LabelCollator
from dexml.types import LabelTable, Split


def measured(model: SentenceTransformer, labels: LabelTable, split: Split) -> str:
    """Return P@1, P@5 and R@100 of `split` in percent; excluded pairs count as any other, unlike in `dexml evaluate`."""
    model.eval()
    rows, queries = (
        model.encode(list(texts), normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False).float().cpu()
        for texts in (labels.texts, split.texts)
    )
    kernels = choose()
    ids = kernels.scan(queries, kernels.prepare(rows), 100, 1.0).ids.numpy()
    figures = precision_at(ids, split.positives, 1), precision_at(ids, split.positives, 5), recall_at(ids, split.positives, 100)
    return "P@1 {:.1f}  P@5 {:.1f}  R@100 {:.1f}".format(*figures)


def main() -> None:
    """Read, train, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", help="a folder or a name on the hub; MiniLM by default")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--negatives", default="512", help="labels drawn at each step beside the batch's positives, or all")
    chosen = parser.parse_args()
    negatives: Literal["all"] | int = "all" if chosen.negatives == "all" else int(chosen.negatives)

    files = open_format(chosen.data)
    labels, train, test = files.labels(), files.read("train"), files.read("test")
    rows = [train.positives.row(number).tolist() for number in range(len(train))]
    dataset = Dataset.from_dict({"query": list(train.texts), "labels": rows})

    model = SentenceTransformer(chosen.model or str(locate()))
    model.max_seq_length = 128
    print("before", measured(model, labels, test), flush=True)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(chosen.out / "checkpoints"),
            max_steps=chosen.steps,
            per_device_train_batch_size=chosen.batch,
            learning_rate=chosen.rate,
            warmup_steps=chosen.steps // 10,
            bf16=torch.cuda.is_available(),
            logging_steps=max(1, chosen.steps // 10),
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=dataset,
        loss=DecoupledSoftmaxLoss(model, labels.texts, negatives=negatives),
        data_collator=LabelCollator(model.preprocess),
    )
    trainer.train()
    print("after ", measured(model, labels, test), flush=True)
    model.save_pretrained(str(chosen.out / "model"))
    print(f"{chosen.out / 'model'} opens with SentenceTransformer(...)")


if __name__ == "__main__":
    main()
