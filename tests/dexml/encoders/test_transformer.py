"""Pooling of transformers that come without one, causal language models above all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, MistralConfig, MistralModel, PreTrainedTokenizerFast

from dexml.encoders.transformer import TransformerEncoder
from dexml.errors import InputError

WORDS = "sort an array of numbers read a file parse open socket the and to in with".split()
TEXTS = ["sort an array", "read a file of numbers and sort an array in the socket", "open"]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small causal model, as transformers saves one, without a padding token."""
    folder = tmp_path_factory.mktemp("causal")
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<eos>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    MistralModel(MistralConfig(vocab_size=len(vocabulary), **sizes, **heads)).save_pretrained(folder)
    return folder


def test_the_last_token_of_a_causal_model_is_the_row(causal: Path, tmp_path: Path):
    encoder = TransformerEncoder(model=str(causal), pooling="last")
    rows = encoder.encode(TEXTS).dense
    plain = AutoModel.from_pretrained(causal).eval()
    for text, row in zip(TEXTS, rows, strict=True):
        ids = torch.tensor([[2 + WORDS.index(word) for word in text.split()]])
        with torch.no_grad():
            last = plain(input_ids=ids).last_hidden_state[0, -1]
        torch.testing.assert_close(row, torch.nn.functional.normalize(last, dim=0), atol=1e-5, rtol=0)
        torch.testing.assert_close(encoder.encode([text]).dense[0], row, atol=1e-5, rtol=0)  # whatever stands beside it
    encoder.save(tmp_path / "saved")
    opened = TransformerEncoder()
    opened.load(tmp_path / "saved")
    torch.testing.assert_close(opened.encode(TEXTS).dense, rows, atol=1e-5, rtol=0)


def test_without_a_pooling_it_is_the_mean(causal: Path):
    own, mean, last = (
        TransformerEncoder(model=str(causal), pooling=of).encode(["sort an array"]).dense for of in ("auto", "mean", "last")
    )
    torch.testing.assert_close(own, mean)
    assert not torch.allclose(mean, last, atol=1e-3)


def test_a_folder_without_a_model_is_told(tmp_path: Path):
    with pytest.raises(InputError, match=r"encoder\.model: .* cannot be opened"):
        TransformerEncoder(model=str(tmp_path), pooling="last").fit([])
