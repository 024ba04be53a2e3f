"""A random two-layer BERT with a word tokenizer, as a sentence-transformers folder: a fine-tune in seconds, without a hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from training.run import Progress

WORDS = (
    "how to do please explain with an example a fast way of my question is about and then sorting ordering arrays fourier "
    "transform signal singular value decomposition matrix solving ordinary differential equations drawing random numbers from "
    "distribution fitting line by least squares regression clustering points into groups filtering sharpening images sparse "
    "matrices few entries splitting joining text strings"
).split()


@pytest.fixture(scope="session")
def tiny_transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("tiny-transformer")
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(root / "bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(root / "bert")
    transformer = Transformer(str(root / "bert"), max_seq_length=32)
    model = SentenceTransformer(modules=[transformer, Pooling(32, "mean"), Normalize()], device="cpu")
    model.save(str(root / "model"), create_model_card=False)
    return root / "model"


FINETUNE = """
name = "tuned"
out = "{out}"
[data]
path = "{data}"
[encoder]
name = "transformer"
model = "{model}"
[tower]
name = "residual"
[finetune]
train = "full"
rate = 1e-3
precision = "float32"
chunk = 64
[training]
epochs = 3
batch = 16
[validation]
fraction = 0.2
"""


@pytest.fixture(scope="session")
def tuning_config(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_transformer: Path) -> Path:
    root = tmp_path_factory.mktemp("tuning-run")
    config = root / "tuning.toml"
    config.write_text(FINETUNE.format(out=root / "run", data=tiny_data, model=tiny_transformer), encoding="utf-8")
    return config


def made_progress(step: int, *, phase: int = 1, validated: float | None = None) -> Progress:
    return Progress(
        phase=phase,
        step=step,
        steps=10,
        epoch=1 + (step - 1) // 5,
        epochs=2,
        loss=1 / step,
        rate=1e-3 * step,
        gradient_norm=0.5,
        queries=16,
        scores=160,
        step_seconds=0.25,
        validation_seconds=validated,
        precision_1=None if validated is None else 50.0,
        precision_3=None if validated is None else 40.0,
        precision_5=None if validated is None else 30.0,
        seconds=float(step),
    )


@pytest.fixture
def progress() -> Callable[..., Progress]:
    """Make what a run says after a step that never was."""
    return made_progress


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A Ray cluster of one node with one processor, connected; tests may add nodes, and take away those that they added."""
    if "ray" not in sys.modules:  # which reads them when it is imported
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.connect()
    yield made
    import ray

    ray.shutdown()
    made.shutdown()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """`run(*arguments, fails=False)`: a dexml command in this process, and what it said."""
    from dexml.__main__ import main

    def run(*arguments: object, fails: bool = False) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert ended.value.code == (2 if fails else 0), told.err
        return told.err if fails else told.out + told.err

    return run
