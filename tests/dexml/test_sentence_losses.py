"""The losses as sentence-transformers modules: what they are equal to, and whole runs of its own trainer."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dexml.errors import InputError
from dexml.losses import LOSSES
from dexml.types import Positives

sentence_losses = pytest.importorskip("dexml.sentence_losses")
needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="pip install dexml[trainer]")

LABELS = ["sorting of arrays", "fast transform", "matrix", "random numbers of a distribution", "line", "groups of points"]
QUERIES = ["how to sort", "transform a matrix", "draw random numbers", "fit a line to points"]
ROWS = [[0, -1], [1, 2], [3, -1], [4, 5]]
T = 0.05
CLASSES = [
    sentence_losses.DecoupledSoftmaxLoss,
    sentence_losses.SoftTopKLoss,
    sentence_losses.MultiPositiveSoftmaxLoss,
    sentence_losses.PairwiseBinaryLoss,
]
EXACT = {"products": "float32", "temperature": T}


def transformer(folder: Path, dropout: float = 0.0):
    """A random BERT of two layers that reads words."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = sorted({word for text in LABELS + QUERIES for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    reader = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    reader.pre_tokenizer = pre_tokenizers.Whitespace()
    reader.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=reader, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    layers = Transformer(str(folder), max_seq_length=16)
    return SentenceTransformer(modules=[layers, Pooling(16)], device="cpu")


@pytest.fixture
def model(tmp_path):
    return transformer(tmp_path / "bert").double()


def rows(model, texts, *, gradient: bool = False):
    """Embeddings as the model makes them, all texts at once."""
    with torch.set_grad_enabled(gradient):
        return normalize(model(model.preprocess(texts))["sentence_embedding"], dim=1)


def gradients(model) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def step(model, loss, columns, labels) -> tuple[float, torch.Tensor]:
    """The value and the gradient of one training step, each column of texts tokenised as the collator does."""
    model.zero_grad()
    value = loss([model.preprocess(texts) for texts in columns], None if labels is None else torch.tensor(labels))
    value.backward()
    return value.item(), gradients(model)


def expected(model, loss, queries, candidates, positives) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    plain = LOSSES.build(loss.row, loss.options)
    value = plain(rows(model, queries, gradient=True), rows(model, candidates, gradient=True), positives)
    value.backward()
    return value.item(), gradients(model)


def agree(got: tuple[float, torch.Tensor], wanted: tuple[float, torch.Tensor]) -> None:
    assert got[0] == pytest.approx(wanted[0], rel=1e-10)
    assert (got[1] - wanted[1]).norm() <= 1e-9 * wanted[1].norm()
    assert wanted[1].norm() > 0


@pytest.mark.parametrize("mini_batch_size", [None, 2, 64])
@pytest.mark.parametrize("kind", CLASSES)
def test_over_a_label_set_it_is_our_loss_of_all_embeddings(model, kind, mini_batch_size):
    loss = kind(model, LABELS, mini_batch_size=mini_batch_size, **EXACT)
    positives = Positives.from_rows([[n for n in row if n >= 0] for row in ROWS], len(LABELS))
    agree(step(model, loss, [QUERIES], ROWS), expected(model, loss, QUERIES, LABELS, positives))
    agree(step(model, loss, [QUERIES], ROWS), expected(model, loss, QUERIES, LABELS, positives))  # cached features serve again


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_over_pairs_every_known_positive_is_one(model, kind, mini_batch_size):
    """Two anchors share a positive, one anchor stands twice, and a hard negative of one row is a positive of another."""
    anchors = [QUERIES[1], QUERIES[1], QUERIES[0], QUERIES[3]]
    beside = [[LABELS[1], LABELS[2], LABELS[0], LABELS[1]], [LABELS[0], LABELS[3], LABELS[1], LABELS[5]]]
    labels = [[1, 0, 2, -1], [2, 3, 1, -1], [0, 1, -1, -1], [1, 5, 4, 9]]  # 4 and 9 are positives outside this batch
    candidates, positives = [0, 1, 2, 3, 5], [[1, 2], [1, 2], [0], [1]]
    k = {"k": 2} if kind is sentence_losses.SoftTopKLoss else {}  # of five: with k ≥ C nothing is left to be lost
    loss = kind(model, mini_batch_size=mini_batch_size, **k, **EXACT)
    wanted = Positives.from_rows(positives, len(candidates))
    got = step(model, loss, [anchors, *beside], labels)
    agree(got, expected(model, loss, anchors, [LABELS[n] for n in candidates], wanted))


def test_a_false_negative_is_never_pushed_away():
    """One query, two candidates, both its positives: no gradient moves either, as there is nothing to be held against."""
    targets = sentence_losses._in_batch(np.array([[0, 1], [1, 0]]), 1)
    reps = [[normalize(torch.randn(2, 8), dim=1).requires_grad_()], [normalize(torch.randn(2, 8), dim=1).requires_grad_()]]
    loss = object.__new__(sentence_losses.DecoupledSoftmaxLoss)
    torch.nn.Module.__init__(loss)
    loss.loss = LOSSES.build("decoupled_softmax", EXACT)
    loss.calculate_loss(reps, targets).backward()
    assert reps[1][0].grad.abs().max() == 0
    unknown = sentence_losses._in_batch(np.array([[0], [1]]), 1)  # the same, had nobody said so
    loss.calculate_loss(reps, unknown).backward()
    assert reps[1][0].grad.abs().max() > 0


def test_with_one_positive_each_the_softmax_is_sentence_transformers_own(model):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    pairs = [QUERIES, LABELS[:4]]
    got = step(model, sentence_losses.MultiPositiveSoftmaxLoss(model, **EXACT), pairs, [[0], [1], [2], [3]])
    agree(got, step(model, MultipleNegativesRankingLoss(model, scale=1 / T), pairs, None))


def test_gradient_caching_draws_the_same_dropout_twice(tmp_path):
    """With dropout on, the cached gradient is the derivative of the very value that was returned."""
    model = transformer(tmp_path / "bert", dropout=0.2).double().train()
    loss = sentence_losses.DecoupledSoftmaxLoss(model, LABELS, mini_batch_size=2, **EXACT)

    def value() -> float:
        torch.manual_seed(3)
        with torch.no_grad():
            return loss([model.preprocess(QUERIES)], torch.tensor(ROWS)).item()

    torch.manual_seed(3)
    parameter = model[0].model.embeddings.word_embeddings.weight
    got = step(model, loss, [QUERIES], ROWS)
    direction = torch.randn(parameter.shape, dtype=torch.float64)
    slope = (parameter.grad * direction).sum().item()
    with torch.no_grad():
        parameter += 1e-6 * direction
        above = value()
        parameter -= 2e-6 * direction
        below = value()
    assert got[0] == pytest.approx((above + below) / 2, rel=1e-8)
    assert slope == pytest.approx((above - below) / 2e-6, rel=1e-6)


def test_sampled_negatives_keep_every_positive_of_the_batch(model):
    loss = sentence_losses.DecoupledSoftmaxLoss(model, LABELS, negatives=1, **EXACT)
    torch.manual_seed(1)
    drawn = int(torch.randint(len(LABELS), (1,)))
    scored = sorted({0, 1, 2, 3, drawn})
    positives = Positives.from_rows([[scored.index(n) for n in row if n >= 0] for row in ROWS[:3]], len(scored))
    torch.manual_seed(1)
    got = step(model, loss, [QUERIES[:3]], ROWS[:3])
    agree(got, expected(model, loss, QUERIES[:3], [LABELS[n] for n in scored], positives))


def test_rows_without_positives_add_nothing(model):
    loss = sentence_losses.DecoupledSoftmaxLoss(model, LABELS, **EXACT)
    some, _ = step(model, loss, [QUERIES[:2]], ROWS[:2])
    more, _ = step(model, loss, [QUERIES], [*ROWS[:2], [-1, -1], [-1, -1]])
    assert more == pytest.approx(some / 2, rel=1e-5)


def test_a_static_embedding_needs_no_chunks():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for text in LABELS + QUERIES for word in text.split()})
    reader = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    reader.pre_tokenizer = pre_tokenizers.Whitespace()
    model = SentenceTransformer(modules=[StaticEmbedding(reader, embedding_dim=16)], device="cpu").double()
    loss = sentence_losses.DecoupledSoftmaxLoss(model, LABELS, **EXACT)
    assert not loss.uses_gradient_cache
    positives = Positives.from_rows([[n for n in row if n >= 0] for row in ROWS], len(LABELS))
    agree(step(model, loss, [QUERIES], ROWS), expected(model, loss, QUERIES, LABELS, positives))


@pytest.mark.parametrize(
    ("given", "columns", "labels", "said"),
    [
        ({}, [QUERIES], ROWS, "give the loss label_texts"),
        ({}, [QUERIES, LABELS[:4]], None, "no column 'labels'"),
        ({}, [QUERIES, LABELS[:4]], [[0], [1], [2], [-1]], "begin with the numbers of the 1 texts"),
        ({}, [QUERIES, LABELS[:4]], [0.5, 1, 2, 3], "int64"),
        ({"label_texts": LABELS}, [QUERIES, LABELS[:4]], ROWS, "one column of queries is expected, got 2"),
        ({"label_texts": LABELS}, [QUERIES], [[6], [0], [0], [0]], r"\[0, 6\).*got 6"),
        ({"label_texts": LABELS}, [QUERIES], [[-2], [0], [0], [0]], "got -2"),
    ],
)
def test_data_that_does_not_fit_is_told(model, given, columns, labels, said):
    with pytest.raises(InputError, match=said):
        step(model, sentence_losses.DecoupledSoftmaxLoss(model, **given), columns, labels)


@pytest.mark.parametrize(
    "options", [{"mini_batch_size": 0}, {"negatives": 3}, {"temperature": 0.0}, {"label_texts": []}, {"positives": "some"}]
)
def test_options_that_mean_nothing_are_told(model, options):
    with pytest.raises(InputError, match=next(iter(options))):
        sentence_losses.DecoupledSoftmaxLoss(model, **options)


def pairs():
    """Bare pairs, their second column the label set; the anchor of two rows is the same."""
    from datasets import Dataset

    table = {"anchor": [QUERIES[i] for i, row in enumerate(ROWS) for n in row if n >= 0]}
    return Dataset.from_dict({**table, "positive": [LABELS[n] for row in ROWS for n in row if n >= 0]})


@needs_datasets
def test_bare_pairs_are_numbered():
    named = sentence_losses.with_labels(pairs())
    assert named["labels"] == [[0], [1, 2], [2, 1], [3], [4, 5], [5, 4]]
    with_negative = pairs().add_column("negative", [LABELS[1], LABELS[0], LABELS[0], LABELS[0], LABELS[3], LABELS[3]])
    assert sentence_losses.with_labels(with_negative)["labels"][1:3] == [[1, 0, 2], [2, 0, 1]]
    with pytest.raises(InputError, match="one column, 'anchor'"):
        sentence_losses.with_labels(pairs().remove_columns("positive"))


@needs_datasets
@pytest.mark.parametrize(("shape", "bf16"), [("label set", False), ("label set", True), ("pairs", True)])
def test_the_trainer_trains_logs_evaluates_and_saves(tmp_path, shape, bf16):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    model = transformer(tmp_path / "bert")
    if shape == "pairs":
        data = sentence_losses.with_labels(pairs())
        loss = sentence_losses.DecoupledSoftmaxLoss(model)
    else:
        data = Dataset.from_dict({"query": QUERIES, "labels": [[n for n in row if n >= 0] for row in ROWS]})
        loss = sentence_losses.DecoupledSoftmaxLoss(model, LABELS, mini_batch_size=4)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"), num_train_epochs=4, per_device_train_batch_size=4, learning_rate=1e-3, bf16=bf16,
        logging_steps=1, save_strategy="epoch", save_total_limit=1, eval_strategy="epoch", report_to=[], use_cpu=True, seed=0,
        disable_tqdm=True, gradient_accumulation_steps=2 if shape == "pairs" else 1,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, loss=loss,
        data_collator=sentence_losses.LabelCollator(model.preprocess),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    watched = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == len(watched) == 4
    assert watched[-1] < watched[0] and losses[-1] < losses[0]
    model.save_pretrained(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu").state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "DecoupledSoftmaxLoss" in card and "Dual-Encoders for Extreme Multi-Label Classification" in card
    assert json.dumps(loss.get_config_dict())
